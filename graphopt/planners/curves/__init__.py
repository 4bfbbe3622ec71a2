"""Memory/time curves of one problem, and how much work goes into one."""

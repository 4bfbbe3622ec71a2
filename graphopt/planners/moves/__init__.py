"""Steps from one schedule to a better one."""

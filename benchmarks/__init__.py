"""Measurements that print a table and write JSON: `python -m benchmarks.planning.planners`."""

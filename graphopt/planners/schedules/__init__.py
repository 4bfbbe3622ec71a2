"""Schedules seen as data: who is alive when, the bytes at each step, what a replay needs."""

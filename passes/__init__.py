"""Passes: functions that edit a step graph and say whether they changed it."""

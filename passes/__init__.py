"""Passes: functions that edit a graph and say whether they changed it; the lists are in `joint` and `window`."""

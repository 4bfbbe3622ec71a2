"""Plans that move values out of memory: which may go, when transfers run, and whether it is worth it."""

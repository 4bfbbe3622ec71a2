"""Regions of a joint graph that run in pieces of their rows: found, rewritten, one idea a file."""

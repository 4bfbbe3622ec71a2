"""Passes over the graph of one optimizer step."""

"""Layers that come many times in a model, captured a few times."""

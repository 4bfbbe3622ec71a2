"""Gradients in and out of one message."""

"""Gradients as few bits, and back."""

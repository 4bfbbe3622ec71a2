"""Optimized against eager, tensor by tensor."""

"""Gradient compression: what is sent between processes instead of whole gradients, and what is kept back."""

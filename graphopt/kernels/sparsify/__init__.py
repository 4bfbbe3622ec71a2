"""The largest elements of gradients, and back."""

"""Calls of the compiled CPU kernels that pick the largest elements."""

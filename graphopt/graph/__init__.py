"""A captured step as a graph of ops and values."""

"""A graph as a chain of regions, and the best way through it."""

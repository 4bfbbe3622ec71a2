"""A training step's parameters, shared out over processes."""

"""A training step's part that is shared between processes."""

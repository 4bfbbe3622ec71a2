"""Doors to the training loops of others: each module imports its own library, and nothing else does."""

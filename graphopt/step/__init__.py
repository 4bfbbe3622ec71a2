"""One optimizer step on one global batch, as one graph inside a number of bytes."""

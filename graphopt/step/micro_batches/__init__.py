"""A global batch as micro-batches: how it is cut, captured, planned, and put together as one window."""

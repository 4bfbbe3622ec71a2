"""The end of a training step: norm, clipping, update, loss scale, accumulation."""

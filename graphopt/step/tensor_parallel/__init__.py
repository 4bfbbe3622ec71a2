"""A training step of a model whose parameters are DTensors."""

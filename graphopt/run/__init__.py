"""What stands in front of a model's forward."""

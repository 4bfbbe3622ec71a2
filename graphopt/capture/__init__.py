"""From a model's call to the joint graph of forward and backward."""

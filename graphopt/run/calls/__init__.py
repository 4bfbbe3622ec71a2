"""The plans of a model's calls, in the loop that calls it."""

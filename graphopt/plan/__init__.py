"""From a captured graph to a plan inside a number of bytes."""

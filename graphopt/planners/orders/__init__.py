"""Other orders in which the ops may run first."""

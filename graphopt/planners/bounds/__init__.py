"""What no schedule can be below."""

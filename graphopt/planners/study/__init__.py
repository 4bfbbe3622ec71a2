"""What is derived from a problem once, and handed to whoever plans it."""

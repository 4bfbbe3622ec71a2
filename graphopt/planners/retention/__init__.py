"""The exact model: which value is retained over which interval."""

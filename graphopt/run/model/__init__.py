"""What was asked for, of which model, wrapped in what."""

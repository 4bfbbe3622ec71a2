"""The watch over real training steps: what they took, against the plan."""

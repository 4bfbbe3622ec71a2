"""What a plan means, for people: data, text, page, JSON."""

"""What PyTorch traces otherwise than it runs it, or not at all: mended while it traces, or warned of."""

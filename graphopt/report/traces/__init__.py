"""A predicted step as other tools show it: Perfetto, PyTorch's memory viewer, tlparse."""

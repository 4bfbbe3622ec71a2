"""Parameters that are shared out over ranks, row by row: gathering them, and scattering the sums of their gradients."""

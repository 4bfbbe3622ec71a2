"""Emitted graphs -> what is run: Inductor's kernels, in the order of the plan."""

"""The gradient tail's own ops, each with torch's ops behind it and, where they can be built, own kernels.

Importing this defines `torch.ops.graphopt.*`; `graphopt.kernels.operators` says what each means.
"""

from __future__ import annotations

from graphopt.kernels.choice import use
from graphopt.kernels.operators import accumulate_, accumulate_mm_, adam_, gradient_norm, scale_update_, sgd_

__all__ = ["accumulate_", "accumulate_mm_", "adam_", "gradient_norm", "scale_update_", "sgd_", "use"]

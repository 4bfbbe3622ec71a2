"""The gradient tail's own ops, each with torch's ops behind it and, where they can be built, own kernels.

Importing this defines `torch.ops.graphopt.*`; `graphopt.kernels.operators` and `sparsify` say what each means.
"""

from __future__ import annotations

from graphopt.kernels.choice import use
from graphopt.kernels.operators import accumulate_, accumulate_mm_, adam_, gradient_norm, scale_update_, sgd_
from graphopt.kernels.sparsify import desparsify_, sparsify_, sparsify_momentum_

__all__ = [
    "accumulate_",
    "accumulate_mm_",
    "adam_",
    "desparsify_",
    "gradient_norm",
    "scale_update_",
    "sgd_",
    "sparsify_",
    "sparsify_momentum_",
    "use",
]

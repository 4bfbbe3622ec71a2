"""The ops of the gradient tail and of compression, each with torch's ops and, where they can be built, own kernels.

Importing this defines `torch.ops.graphopt.*`. Each family is a folder: `ops` says what its ops mean and which functions
run them, `definition` has those in torch's own ops, `cpu` and `cuda` ours.
"""

from __future__ import annotations

from graphopt.kernels.choice import use
from graphopt.kernels.messages.ops import commit_, pack, sum_parts, unpack_
from graphopt.kernels.quantize.ops import dequantize_, dequantize_qsgd_, qsgd, quantize_, requantize_
from graphopt.kernels.sparsify.ops import desparsify_, sparsify_, sparsify_momentum_
from graphopt.kernels.streaming.ops import stream_adam_, stream_sgd_
from graphopt.kernels.tail.ops import accumulate_, accumulate_mm_, adam_, gradient_norm, scale_update_, sgd_

__all__ = [
    "accumulate_",
    "accumulate_mm_",
    "adam_",
    "commit_",
    "dequantize_",
    "dequantize_qsgd_",
    "desparsify_",
    "gradient_norm",
    "pack",
    "qsgd",
    "quantize_",
    "requantize_",
    "scale_update_",
    "sgd_",
    "sparsify_",
    "sparsify_momentum_",
    "stream_adam_",
    "stream_sgd_",
    "sum_parts",
    "unpack_",
    "use",
]

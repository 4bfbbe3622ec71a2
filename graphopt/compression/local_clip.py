"""DGC's local clipping, on tensors and on fx proxies."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from graphopt import kernels
from graphopt.compression.bucket import TensorLike
from graphopt.kernels.tail.clip_factor import clip_factor

_aten = torch.ops.aten


def clip_locally(
    gradients: Sequence[TensorLike], max_norm: float, world: int, inverse_scale: TensorLike | None
) -> None:
    """Scale a rank's gradients in place so that their norm is at most max_norm / sqrt(world).

    Lin et al., ICLR 2018, section 3.2. `gradients` are all that the rank has, and times `inverse_scale` (fp32
    scalar, None for 1) its share of the sum over ranks.
    """
    norm = kernels.gradient_norm(gradients, 2.0)[0]
    if inverse_scale is not None:
        norm = _aten.mul.Tensor(norm, inverse_scale)
    _aten._foreach_mul_.Tensor(gradients, clip_factor(norm, max_norm / math.sqrt(world)))

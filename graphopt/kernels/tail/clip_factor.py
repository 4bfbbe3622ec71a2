"""What gradients are multiplied by so that their norm is no more than it may be."""

from __future__ import annotations

from typing import Any

import torch

_aten = torch.ops.aten
#: As in torch.nn.utils.clip_grad_norm_.
_EPSILON = 1e-6


def clip_factor(norm: Any, max_norm: float) -> Any:
    """min(1, max_norm / (norm + 1e-6)), to the bits of `torch.nn.utils.clip_grad_norm_`; NaN where the norm is.

    `norm` is a scalar or a vector of norms, as tensor or fx proxy.
    """
    ratio = _aten.mul.Tensor(_aten.reciprocal.default(_aten.add.Tensor(norm, _EPSILON)), max_norm)
    return _aten.clamp_max.default(ratio, 1.0)

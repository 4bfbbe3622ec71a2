"""`torch.ops.graphopt.masked_gradient`: the gradient of values that a mask has written.

`masked_gradient(gradient, indices, shape)` sums `gradient[indices]` to the shape of the values, as autograd does behind
`index_put_`. How many rows a mask takes is known only when it is there, so that ATen's own ops for it cannot be traced.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from graphopt.kernels.define import define


def _masked_gradient(gradient: Tensor, indices: Sequence[Tensor | None], shape: Sequence[int]) -> Tensor:
    taken = gradient[tuple(slice(None) if index is None else index for index in indices)]
    return taken.sum_to_size(*shape) if shape else taken.sum()


def _fake(gradient: Tensor, _indices: Sequence[Tensor | None], shape: Sequence[int]) -> Tensor:
    return gradient.new_empty(shape)


masked_gradient = define(
    "masked_gradient(Tensor gradient, Tensor?[] indices, SymInt[] shape) -> Tensor", _masked_gradient, _fake
)

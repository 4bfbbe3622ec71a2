"""PowerSGD's stages as ops (Vogels et al., NeurIPS 2019, algorithms 1 and 2).

A gradient of shape (n, ...) is a matrix X of n rows; each has min(n, width, rank) columns of `query` Q and left
factor P. `power_left_` writes X = gradient × inverse_scale + residual into the gradients and gives the X Q, one behind
the other; `power_right` takes their sum over ranks, gives the orthonormal bases P of it and the Xᵀ P; `power_finish_`
takes the sum of these, which are the new queries: the gradients become P Qᵀ × scale, the residuals X - P Qᵀ / world,
so that residuals and what was sent add up to all ranks' X. Where `overflow` is not 0.0 residuals and queries keep
their bits, and what the gradients hold has no meaning.

Bases are made in float64, by Householder's reflections: ranks whose last bits differ still agree, and a column of
zeros, or one that depends on the others, gets a direction of its own instead of a division by zero or amplified noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from graphopt.kernels.define import define, no_result


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """Rows and width of a gradient seen as a matrix."""
    return shape[0], math.prod(shape[1:])


def columns(shape: Sequence[int], rank: int) -> int:
    """How many columns its factors have."""
    return min(*matrix_shape(shape), rank)


def _matrix(gradient: Tensor) -> Tensor:
    """A view where the layout allows it, else a copy."""
    return gradient.reshape(gradient.shape[0], -1)


def _orthonormal(matrix: Tensor) -> Tensor:
    q: Tensor = torch.linalg.qr(matrix.double()).Q
    return q.to(matrix.dtype)


def _flat(matrices: list[Tensor]) -> Tensor:
    return torch.cat([matrix.flatten() for matrix in matrices])


def _factors(flat: Tensor, shapes: list[tuple[int, int]]) -> list[Tensor]:
    parts = flat.split([rows * width for rows, width in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _left_shapes(gradients: list[Tensor], rank: int) -> list[tuple[int, int]]:
    return [(g.shape[0], columns(g.shape, rank)) for g in gradients]


def _power_left(
    gradients: list[Tensor],
    residuals: list[Tensor],
    queries: list[Tensor],
    overflow: Tensor,
    inverse_scale: Tensor | None,
) -> Tensor:
    lefts = []
    for gradient, residual, query in zip(gradients, residuals, queries, strict=True):
        if inverse_scale is None:
            gradient.add_(residual)
        else:
            torch.addcmul(residual, gradient, inverse_scale, out=gradient)
        lefts.append(_matrix(gradient) @ _orthonormal(query))
    # not the products: a matrix product may leave out what it would multiply by zero
    overflow.clamp_min_(torch.ops.graphopt.gradient_norm.default(gradients, math.inf)[1])
    return _flat(lefts)


def _power_right(gradients: list[Tensor], lefts: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    bases = [_orthonormal(left) for left in _factors(lefts, _left_shapes(gradients, rank))]
    rights = [_matrix(gradient).t() @ basis for gradient, basis in zip(gradients, bases, strict=True)]
    return _flat(bases), _flat(rights)


def _power_finish(
    gradients: list[Tensor],
    residuals: list[Tensor],
    queries: list[Tensor],
    lefts: Tensor,
    rights: Tensor,
    overflow: Tensor,
    scale: Tensor | None,
    world: int,
) -> None:
    bases = _factors(lefts, [(g.shape[0], q.shape[1]) for g, q in zip(gradients, queries, strict=True)])
    factors = _factors(rights, [(q.shape[0], q.shape[1]) for q in queries])
    for gradient, residual, query, basis, factor in zip(gradients, residuals, queries, bases, factors, strict=True):
        _keep_back_(residual, gradient, basis, factor / -world, overflow)
        _assign(query, factor, overflow)
        scaled = factor if scale is None else factor * scale
        if gradient.is_contiguous():
            torch.mm(basis, scaled.t(), out=_matrix(gradient))
        else:
            gradient.copy_((basis @ scaled.t()).view(gradient.shape))


def _keep_back_(residual: Tensor, gradient: Tensor, basis: Tensor, factor: Tensor, overflow: Tensor) -> None:
    """`residual` = gradient + basis × factorᵀ, in its own memory where the layouts and the device allow it."""
    if overflow.device.type == "cpu" and overflow != 0:
        return
    if overflow.device.type == "cpu" and residual.is_contiguous() and gradient.is_contiguous():
        torch.addmm(_matrix(gradient), basis, factor.t(), out=_matrix(residual))
        return
    _assign(residual, torch.addmm(_matrix(gradient), basis, factor.t()).view(residual.shape), overflow)


def _assign(state: Tensor, value: Tensor, overflow: Tensor) -> None:
    if overflow.device.type != "cpu":
        state.copy_(torch.where(overflow != 0, state, value))
    elif overflow == 0:
        state.copy_(value)


def _fake_left(
    gradients: list[Tensor], _residuals: list[Tensor], queries: list[Tensor], *_rest: Tensor | None
) -> Tensor:
    return gradients[0].new_empty(sum(g.shape[0] * q.shape[1] for g, q in zip(gradients, queries, strict=True)))


def _fake_right(gradients: list[Tensor], lefts: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    widths = sum(matrix_shape(g.shape)[1] * columns(g.shape, rank) for g in gradients)
    return torch.empty_like(lefts), lefts.new_empty(widths)


power_left_ = define(
    "power_left_(Tensor(a!)[] gradients, Tensor[] residuals, Tensor[] queries, Tensor(b!) overflow, "
    "Tensor? inverse_scale) -> Tensor",
    _power_left,
    _fake_left,
)
power_right = define(
    "power_right(Tensor[] gradients, Tensor lefts, int rank) -> (Tensor lefts, Tensor rights)",
    _power_right,
    _fake_right,
)
power_finish_ = define(
    "power_finish_(Tensor(a!)[] gradients, Tensor(b!)[] residuals, Tensor(c!)[] queries, Tensor lefts, "
    "Tensor rights, Tensor overflow, Tensor? scale, int world) -> ()",
    _power_finish,
    no_result,
)

"""The largest elements of gradients, with torch's own ops; `graphopt.kernels.sparsify.ops` says what each op means."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from graphopt.kernels.layout import as_laid_out, dense, flat, write_back
from graphopt.kernels.sparsify.wire import BLOCK_ELEMENTS, Section, sections

_SAMPLED = 4096
_SMALLEST = 2.0**-149  # the least positive fp32 number: zeros are never sent


def sparsify_(
    gradients: list[Tensor],
    residuals: list[Tensor],
    overflow: Tensor,
    inverse_scale: Tensor | None,
    counts: list[int],
    threshold: float | None,
) -> Tensor:
    """See `graphopt.kernels.sparsify.ops`."""
    laid_out = [dense(gradient) for gradient in gradients]
    wire = _empty_wire(gradients, counts, overflow)
    for index, section in enumerate(sections([g.numel() for g in gradients], counts)):
        x = _unscaled(laid_out[index], inverse_scale)
        if residuals:
            x.add_(flat(as_laid_out(residuals[index], laid_out[index])))
        indices = _send(wire, section, x, overflow, threshold)
        x[indices] = 0
    write_back(laid_out, gradients)
    return wire


def sparsify_momentum_(
    gradients: list[Tensor],
    residuals: list[Tensor],
    momenta: list[Tensor],
    overflow: Tensor,
    inverse_scale: Tensor | None,
    counts: list[int],
    momentum: float,
) -> tuple[Tensor, list[Tensor]]:
    """See `graphopt.kernels.sparsify.ops`."""
    laid_out = [dense(gradient) for gradient in gradients]
    wire = _empty_wire(gradients, counts, overflow)
    new_momenta = [torch.empty_like(gradient) for gradient in laid_out]
    for index, section in enumerate(sections([g.numel() for g in gradients], counts)):
        like = laid_out[index]
        x, moved = _unscaled(like, inverse_scale), flat(new_momenta[index])
        torch.mul(flat(as_laid_out(momenta[index], like)), momentum, out=moved).add_(x)
        torch.add(flat(as_laid_out(residuals[index], like)), moved, out=x)
        indices = _send(wire, section, x, overflow, None)
        x[indices] = 0
        moved[indices] = 0
    write_back(laid_out, gradients)
    return wire, new_momenta


def desparsify_(wire: Tensor, gradients: list[Tensor], copies: int, counts: list[int], scale: Tensor | None) -> None:
    """See `graphopt.kernels.sparsify.ops`."""
    laid_out = [dense(gradient) for gradient in gradients]
    for target, section in zip(laid_out, sections([g.numel() for g in gradients], counts), strict=True):
        x = flat(target).zero_()
        for copy in wire.view(copies, -1).unbind():
            indices, values = _read(copy, section)
            x[indices] += values
        if scale is not None:
            x.mul_(scale)
    write_back(laid_out, gradients)


def _send(wire: Tensor, section: Section, x: Tensor, overflow: Tensor, threshold: float | None) -> Tensor:
    """Write one parameter's section; the indices that were sent, ascending."""
    magnitudes = x.abs()
    if x.numel():
        overflow.copy_(torch.maximum(overflow, (~magnitudes.max().isfinite()).to(overflow.dtype)))
    indices = _largest(magnitudes, section.capacity, threshold)
    _write(wire, section, x, indices)
    return indices


def _largest(magnitudes: Tensor, count: int, threshold: float | None) -> Tensor:
    """Indices, ascending, of the `count` largest from `threshold` on; of equal ones the first are taken.

    A sample says where to look first, as sorting all is an order of magnitude slower; it changes no result.
    """
    if count == 0:
        return torch.empty(0, dtype=torch.int64, device=magnitudes.device)
    lowest = max(threshold or 0.0, _SMALLEST)
    guess = max(_sampled_magnitude(magnitudes, count), lowest)
    found = _largest_from(magnitudes, count, guess)
    return found if len(found) == count or guess == lowest else _largest_from(magnitudes, count, lowest)


def _sampled_magnitude(magnitudes: Tensor, count: int) -> float:
    """A magnitude that more than `count` elements most likely reach: three deviations of the sample below theirs."""
    sample = magnitudes[:: (magnitudes.numel() // _SAMPLED) | 1]
    expected = len(sample) * count / magnitudes.numel()
    rank = math.ceil(expected + 3 * math.sqrt(expected)) + 1
    return float(sample.topk(rank, sorted=False).values.min()) if rank < len(sample) else 0.0


def _largest_from(magnitudes: Tensor, count: int, lowest: float) -> Tensor:
    candidates = (magnitudes >= lowest).nonzero().view(-1)
    if len(candidates) <= count:
        return candidates
    among = magnitudes[candidates]
    last = among.topk(count, sorted=False).values.min()
    above = candidates[among > last]
    return torch.cat([above, candidates[among == last][: count - len(above)]]).sort().values


def _unscaled(gradient: Tensor, inverse_scale: Tensor | None) -> Tensor:
    return flat(gradient) if inverse_scale is None else flat(gradient).mul_(inverse_scale)


def _empty_wire(gradients: list[Tensor], counts: list[int], overflow: Tensor) -> Tensor:
    every = sections([g.numel() for g in gradients], counts)
    return torch.zeros(every[-1].end_bytes if every else 0, dtype=torch.uint8, device=overflow.device)


def _write(wire: Tensor, section: Section, x: Tensor, indices: Tensor) -> None:
    blocks = torch.arange(section.blocks + 1, device=x.device) * BLOCK_ELEMENTS
    _part(wire, section.begin_bytes, section.blocks, torch.int32).copy_(torch.searchsorted(indices, blocks).diff())
    _part(wire, section.values_begin_bytes, len(indices), torch.float32).copy_(x[indices])
    offsets = (indices % BLOCK_ELEMENTS).to(torch.int16)  # the same bits as uint16
    _part(wire, section.offsets_begin_bytes, len(indices), torch.int16).copy_(offsets)


def _read(wire: Tensor, section: Section) -> tuple[Tensor, Tensor]:
    """Indices and values of what was sent of one parameter."""
    counts = _part(wire, section.begin_bytes, section.blocks, torch.int32)
    begins = torch.arange(section.blocks, device=wire.device) * BLOCK_ELEMENTS
    indices = begins.repeat_interleave(counts.long())
    offsets = _part(wire, section.offsets_begin_bytes, len(indices), torch.int16)
    return indices + (offsets.long() & 0xFFFF), _part(wire, section.values_begin_bytes, len(indices), torch.float32)


def _part(wire: Tensor, begin_bytes: int, length: int, dtype: torch.dtype) -> Tensor:
    return wire[begin_bytes : begin_bytes + length * dtype.itemsize].view(dtype)

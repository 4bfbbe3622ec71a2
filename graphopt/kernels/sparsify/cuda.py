"""Sending the largest elements on CUDA, in Triton: exactly, for all parameters together, and nothing that waits.

The cut is found by three histograms of magnitudes, of 11, 10 and 10 bits from the top, as radix selection does; then
every piece counts what it sends, and knows by the sums of those before it where its elements go.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from graphopt.kernels.layout import as_laid_out, dense, write_back
from graphopt.kernels.pieces import addresses, pieces
from graphopt.kernels.sparsify.cuda_select import digit_kernel, place_kernel, send_kernel, sum_kernel, tally_kernel
from graphopt.kernels.sparsify.wire import BLOCK_ELEMENTS, Section, sections

PIECE_ELEMENTS = 8192  # a part of a block
PIECE_TILE_ELEMENTS = 4096  # a histogram of 2048 bins costs as much as as many elements, once a tile
TILE_ELEMENTS = 1024
_BINS = 1 << 11
_DIGITS = ((20, 11), (10, 10), (0, 10))


def sparsify_(
    gradients: list[Tensor],
    residuals: list[Tensor],
    overflow: Tensor,
    inverse_scale: Tensor | None,
    counts: list[int],
    threshold: float | None,
) -> Tensor:
    """See `graphopt.kernels.sparsify.ops`."""
    (lowest,) = struct.unpack("i", struct.pack("f", threshold or 0.0))
    return _sparsify(gradients, [residuals, [], []], overflow, inverse_scale, counts, 0.0, max(lowest, 1))


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
    moved = [torch.empty_like(dense(gradient)) for gradient in gradients]
    return _sparsify(gradients, [residuals, momenta, moved], overflow, inverse_scale, counts, momentum, 1), moved


def desparsify_(wire: Tensor, gradients: list[Tensor], copies: int, counts: list[int], scale: Tensor | None) -> None:
    """See `graphopt.kernels.sparsify.ops`."""
    laid_out = [dense(gradient) for gradient in gradients]
    torch._foreach_zero_(laid_out)
    sizes = tuple(g.numel() for g in laid_out)
    if not any(sizes):
        return
    rows, starts, _ = pieces(sizes, BLOCK_ELEMENTS, wire.device)
    table, places = addresses(laid_out), sections(sizes, counts)
    for copy in wire.view(copies, -1).unbind():
        in_block = copy.view(torch.int32)[_count_places(sizes, tuple(counts), wire.device)].long()
        begins = _before(in_block, rows)
        arrays = _arrays(copy, places)
        place_kernel[(len(rows),)](table, rows, starts, in_block, begins, *arrays, TILE=TILE_ELEMENTS)
    if scale is not None:
        torch._foreach_mul_(laid_out, scale)
    write_back(laid_out, gradients)


@dataclass(frozen=True)
class _Launch:
    """What all kernels of one call are given: tables of parameters, and of their pieces."""

    gradients: Tensor
    rows: Tensor
    starts: Tensor
    sizes: Tensor

    def run(self, kernel: Any, *arguments: Any, **options: Any) -> None:
        """Launch over all pieces; products and sums are rounded each, as torch's ops round them."""
        options |= {"PIECE": PIECE_ELEMENTS, "TILE": PIECE_TILE_ELEMENTS, "num_warps": 8, "enable_fp_fusion": False}
        kernel[(len(self.rows),)](self.gradients, *arguments, **options)

    @property
    def pieces(self) -> tuple[Tensor, Tensor, Tensor]:
        """As every kernel takes them."""
        return self.rows, self.starts, self.sizes


def _sparsify(
    gradients: list[Tensor],
    states: list[list[Tensor]],
    overflow: Tensor,
    inverse_scale: Tensor | None,
    counts: list[int],
    momentum: float,
    lowest: int,
) -> Tensor:
    laid_out = [dense(gradient) for gradient in gradients]
    columns = [
        [as_laid_out(t, g) for t, g in zip(column, laid_out, strict=True)] if column else [] for column in states
    ]
    assert all(t.dtype == torch.float32 for column in (laid_out, *columns) for t in column)
    sizes = tuple(g.numel() for g in laid_out)
    places = sections(sizes, counts)
    wire = overflow.new_zeros(places[-1].end_bytes if places else 0, dtype=torch.uint8)
    if not any(sizes):
        return wire
    launch = _Launch(addresses(laid_out), *pieces(sizes, PIECE_ELEMENTS, wire.device))
    residuals, momenta, moved = (addresses(column) if column else launch.gradients for column in columns)
    with_momenta = bool(columns[1])
    histograms = torch.zeros(len(sizes), _BINS, dtype=torch.int32, device=wire.device)
    scalars = (overflow.new_ones(()) if inverse_scale is None else inverse_scale, momentum)
    launch.run(
        *(sum_kernel, residuals, momenta, moved, *launch.pieces, histograms, overflow, *scalars),
        with_residuals=bool(columns[0]),
        with_momenta=with_momenta,
        BINS=_BINS,
    )
    lasts, ties = _cuts(launch, histograms, [section.capacity for section in places], lowest)
    sent, begins, allowed = _tallied(launch, lasts, ties)
    arrays = _arrays(wire, places)
    launch.run(send_kernel, moved, *launch.pieces, lasts, allowed, begins, *arrays, with_momenta=with_momenta)
    _write_counts(wire, launch, sent, sizes, tuple(counts))
    write_back(laid_out, gradients)
    return wire


def _cuts(launch: _Launch, histograms: Tensor, capacities: list[int], lowest: int) -> tuple[Tensor, Tensor]:
    """Of each parameter the magnitude, as bits, above which all is taken, and how many that are equal to it."""
    wanted = torch.tensor(capacities, device=histograms.device)
    prefixes = torch.zeros_like(wanted)
    for shift, width in _DIGITS:
        if shift + width < 31:
            histograms.zero_()
            options = {"shift": shift, "width": width, "BINS": _BINS}
            launch.run(digit_kernel, *launch.pieces, histograms, prefixes, **options)
        from_top = histograms[:, : 1 << width].flip(1).cumsum(1).flip(1)
        bins = (from_top >= wanted[:, None]).sum(1, keepdim=True) - 1
        above = torch.nn.functional.pad(from_top, (0, 1)).gather(1, bins + 1)
        wanted = wanted - above.squeeze(1)
        prefixes = prefixes | (bins.squeeze(1) << shift)
    too_small = prefixes < lowest
    return torch.where(too_small, lowest - 1, prefixes), torch.where(too_small, 0, wanted)


def _tallied(launch: _Launch, lasts: Tensor, ties: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each piece how many elements it sends, how many are before it, and how many of the equal ones it may send."""
    above, equal = (torch.empty_like(launch.rows) for _ in range(2))
    launch.run(tally_kernel, *launch.pieces, lasts, above, equal)
    allowed = (ties[launch.rows] - _before(equal, launch.rows)).clamp(min=0)
    sent = above + torch.minimum(allowed, equal)
    return sent, _before(sent, launch.rows), allowed


def _before(counts: Tensor, rows: Tensor) -> Tensor:
    """Sums of what the earlier pieces of the same parameter have; `rows` is ascending."""
    total = counts.cumsum(0) - counts
    return total - total[torch.searchsorted(rows, rows)]


def _arrays(wire: Tensor, places: list[Section]) -> tuple[Tensor, Tensor]:
    """Addresses of each parameter's values and of their places in blocks."""
    values = [wire[section.values_begin_bytes :] for section in places]
    return addresses(values), addresses([wire[section.offsets_begin_bytes :] for section in places])


@lru_cache(maxsize=64)
def _count_places(sizes: tuple[int, ...], counts: tuple[int, ...], device: torch.device) -> Tensor:
    """Where the numbers of elements of all blocks are in a wire of int32."""
    every = [s.begin_bytes // 4 + block for s in sections(sizes, counts) for block in range(s.blocks)]
    return torch.tensor(every, device=device)


def _write_counts(wire: Tensor, launch: _Launch, sent: Tensor, sizes: tuple[int, ...], counts: tuple[int, ...]) -> None:
    places = _count_places(sizes, counts, wire.device)
    begins_block = (launch.starts % BLOCK_ELEMENTS == 0).long()
    in_block = torch.zeros_like(places).index_add_(0, begins_block.cumsum(0) - 1, sent)
    wire.view(torch.int32)[places] = in_block.int()

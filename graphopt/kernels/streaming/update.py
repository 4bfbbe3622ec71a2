"""Updates by blocks: while one is computed, the state of the next one is read and that of the last one written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from graphopt.base.errors import OffloadError
from graphopt.base.interrupts import uninterrupted
from graphopt.device.elsewhere import holder_of
from graphopt.kernels.layout import as_laid_out, flat
from graphopt.kernels.streaming.blocks import SLOTS, StatePart, cut, places, slot_bytes
from graphopt.kernels.streaming.store import InMemory, StateTransfers


@dataclass(frozen=True)
class UpdateRows:
    """What is updated: one tensor a parameter in each list; `states` by kind of state, the others may be empty."""

    params: Sequence[Tensor]
    gradients: Sequence[Tensor]
    states: Sequence[Sequence[Tensor]]
    steps: Sequence[Tensor]
    copies: Sequence[Tensor]


#: Updates these rows, whose state is on the device.
Update = Callable[[UpdateRows], None]


def update_by_blocks(rows: UpdateRows, update: Update, most_elements: int, *, reads: bool) -> None:
    """Update all of `rows` by blocks of at most so many elements; parameters are dense, and state is laid out alike.

    Without `reads` what was there of the state is not wanted. The bits are those of one update, as each element has its
    own. Raises OffloadError where a transfer failed: some parameters are updated then, and others are not.
    """
    # a profile runs the op on tensors of its own
    store = cast(StateTransfers, holder_of(rows.states[0][0]) or InMemory())
    gradients = [as_laid_out(g, p) for g, p in zip(rows.gradients, rows.params, strict=True)]
    laid_out = UpdateRows(rows.params, gradients, rows.states, rows.steps, rows.copies)
    blocks = cut([param.numel() for param in rows.params], most_elements)
    stream = _Stream(laid_out, store, _slots(rows, most_elements))
    try:
        with uninterrupted():
            _run(stream, blocks, update, reads)
    except OffloadError as error:
        raise OffloadError(
            f"{error}. It happened in the optimizer's update: some parameters and their state are updated, and others "
            "are not. Load a checkpoint, and build the step anew"
        ) from error
    finally:
        stream.settle()


def _run(stream: _Stream, blocks: list[list[StatePart]], update: Update, reads: bool) -> None:
    if reads:
        stream.read(0, blocks[0])
    for number, block in enumerate(blocks):
        slot, following = number % SLOTS, (number + 1) % SLOTS
        stream.wait(following)  # what the block before the last one was written from
        if reads and number + 1 < len(blocks):
            stream.read(following, blocks[number + 1])
        stream.wait(slot)
        update(stream.rows_of(slot, block))
        stream.write(slot, block)
    for slot in range(SLOTS):
        stream.finish(slot)


def _slots(rows: UpdateRows, most_elements: int) -> list[list[Tensor]]:
    elements, device = [param.numel() for param in rows.params], rows.params[0].device
    sizes = [slot_bytes(elements, [t.dtype.itemsize for t in state], most_elements) for state in rows.states]
    return [[torch.empty(size, dtype=torch.uint8, device=device) for size in sizes] for _ in range(SLOTS)]


class _Stream:
    """The slots of one update, each with a buffer a kind of state, and the transfers that use them."""

    def __init__(self, rows: UpdateRows, store: StateTransfers, slots: list[list[Tensor]]) -> None:
        self._rows, self._store, self._slots = rows, store, slots
        self._transfers: list[list[Any]] = [[] for _ in slots]

    def read(self, slot: int, block: list[StatePart]) -> None:
        """Begin to read the state of a block."""
        for tensors, parts in zip(self._rows.states, self._parts(slot, block), strict=True):
            for part, memory in zip(block, parts, strict=True):
                self._transfers[slot].append(self._store.read(tensors[part.parameter], part.start, memory))

    def write(self, slot: int, block: list[StatePart]) -> None:
        """Begin to write it back."""
        for tensors, parts in zip(self._rows.states, self._parts(slot, block), strict=True):
            for part, memory in zip(block, parts, strict=True):
                self._transfers[slot].append(self._store.write(tensors[part.parameter], part.start, memory))

    def wait(self, slot: int) -> None:
        """What comes next may use the slot."""
        for transfer in self._transfers[slot]:
            self._store.wait(transfer)
        self._transfers[slot].clear()

    def finish(self, slot: int) -> None:
        """Wait until the slot's transfers have ended."""
        for transfer in self._transfers[slot]:
            self._store.finish(transfer)
        self._transfers[slot].clear()

    def settle(self) -> None:
        """Let go of no memory that a transfer uses, whether or not that fails."""
        for transfers in self._transfers:
            for transfer in transfers:
                try:
                    self._store.finish(transfer)
                except OffloadError:
                    continue

    def rows_of(self, slot: int, block: list[StatePart]) -> UpdateRows:
        """The parts of a block; a parameter's count of steps advances with its last part."""
        rows = self._rows

        def some(tensors: Sequence[Tensor]) -> list[Tensor]:
            return [flat(tensors[p.parameter])[p.start : p.stop] for p in block] if tensors else []

        counts = [
            rows.steps[p.parameter] if p.is_last else rows.steps[p.parameter].clone() for p in block if rows.steps
        ]
        states = self._parts(slot, block)
        return UpdateRows(some(rows.params), some(rows.gradients), states, counts, some(rows.copies))

    def _parts(self, slot: int, block: list[StatePart]) -> list[list[Tensor]]:
        """Where in a slot the parts of a block are, by kind of state."""
        found = []
        for tensors, buffer in zip(self._rows.states, self._slots[slot], strict=True):
            at = places(block, [tensor.dtype.itemsize for tensor in tensors])
            dtypes = [tensors[part.parameter].dtype for part in block]
            found.append([buffer[a:b].view(dtype) for (a, b), dtype in zip(at, dtypes, strict=True)])
        return found

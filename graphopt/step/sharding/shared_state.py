"""Gradients and optimizer state as this rank's rows, beside parameters that are whole on every rank.

The second stage of ZeRO (Rajbhandari et al., "ZeRO", 2020, section 5.2): each rank updates its rows, and all give
theirs to the others then. Parameters are gathered once a step, whatever the number of micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from graphopt.base.errors import UsageError
from graphopt.base.parts import part_of
from graphopt.compression.link import Link
from graphopt.kernels.sharding import ops
from graphopt.kernels.sharding.transport import begin_gather
from graphopt.passes.window.share_rows import RowsInWindow
from graphopt.step.sharding.parameters import Shard, check_parameter, rows_over
from graphopt.step.sharding.placement import Placement

#: What becomes of a tensor of state when its parameter is another one.
_Change = Callable[[Tensor, nn.Parameter], Tensor]


class SharedState:
    """The optimizer of a model holds this rank's rows of the parameters from now on, and its state is that of rows.

    `rows` has them by name: views into the parameters. Raises UsageError, with nothing changed, where one cannot be.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, placed: Placement, link: Link) -> None:
        named = dict(model.named_parameters())
        for name, parameter in named.items():
            check_parameter(name, parameter)
        self.model, self.placed, self.ranks = model, placed, placed.rows
        self.how = replace(rows_over(placed, link), gathers=False)
        self.state_hooks: list[RemovableHandle] = []
        self._is_over = False
        parts = {name: part_of(len(p), self.ranks.rank, self.ranks.world) for name, p in named.items()}
        self.rows = {name: nn.Parameter(p.data[parts[name]], p.requires_grad) for name, p in named.items()}
        self.shards = {n: Shard(n, self.rows[n], p.shape, parts[n], p.data) for n, p in named.items()}
        self._whole = named
        self._ids = {id(parameter) for parameter in named.values()}
        self._by_rows = {id(shard.parameter): shard for shard in self.shards.values()}
        self._hand_over(optimizer, {id(p): self.rows[name] for name, p in named.items()}, self._rows_of)

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Of the wholes, by name."""
        return {name: shard.shape for name, shard in self.shards.items()}

    @property
    def whole_bytes(self) -> int:
        """Of all parameters."""
        return sum(parameter.nbytes for parameter in self._whole.values())

    @property
    def in_window(self) -> RowsInWindow:
        """What a window does with rows."""
        return RowsInWindow(self.how.group, {name: shard.rows for name, shard in self.shards.items()})

    def has(self, item: object) -> bool:
        """Whether it is one of the parameters."""
        return id(item) in self._ids

    def of_stepped(self, stepped: object) -> Shard | None:
        """What is known of what the optimizer holds."""
        return self._by_rows.get(id(stepped))

    @contextmanager
    def as_captured(self) -> Iterator[None]:
        """Parameters are whole as they are."""
        yield

    @contextmanager
    def whole(self) -> Iterator[nn.Module]:
        """The model is whole."""
        yield self.model

    def check_in_parts(self) -> None:
        """Raise UsageError where the state is whole again."""
        if self._is_over:
            raise UsageError("a step cannot be taken after step.unshard()")

    def share(self) -> None:
        """Each rank updated its rows: give them to the others; a collective call."""
        ops.share_([parameter.data for parameter in self._whole.values()], self.how.group)

    def unshard(self, optimizer: torch.optim.Optimizer) -> None:
        """Let the optimizer hold the parameters again, and its state be whole, for good; a collective call."""
        while self.state_hooks:
            self.state_hooks.pop().remove()
        back = {id(rows): self._whole[name] for name, rows in self.rows.items()}
        self._hand_over(optimizer, back, self._gathered)
        self._is_over = True

    def _hand_over(self, optimizer: torch.optim.Optimizer, to: Mapping[int, nn.Parameter], change: _Change) -> None:
        """Let the optimizer hold other tensors, with their state changed as they are."""
        for group in optimizer.param_groups:
            for position, held in enumerate(group["params"]):
                if id(held) not in to:
                    continue
                other = group["params"][position] = to[id(held)]
                state = optimizer.state.pop(held, None)
                if state is not None:
                    optimizer.state[other] = {
                        key: change(value, other) if isinstance(value, Tensor) and value.shape == held.shape else value
                        for key, value in state.items()
                    }

    def _rows_of(self, whole: Tensor, rows: nn.Parameter) -> Tensor:
        return whole[self._of_rows(rows).rows].clone()

    def _gathered(self, rows: Tensor, whole: nn.Parameter) -> Tensor:
        made = torch.empty_like(whole, dtype=rows.dtype, requires_grad=False)
        begin_gather(made, rows, self.ranks.group).arrive(made)
        return made

    def _of_rows(self, rows: nn.Parameter) -> Shard:
        return self._by_rows[id(rows)]

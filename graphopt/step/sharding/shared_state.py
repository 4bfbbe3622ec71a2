"""Optimizer state, with or without gradients, as this rank's rows, beside parameters that are whole on every rank.

The first two stages of ZeRO (Rajbhandari et al., "ZeRO", 2020, sections 5.1 and 5.2): each rank updates its rows, and
all give theirs to the others then. In the first one gradients are summed whole, as they are without rows. Parameters
are gathered once a step, whatever the number of micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

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
from graphopt.step.sharding.whole_state import make_state_whole

#: What becomes of a tensor of state when its parameter is another one.
_Change = Callable[[Tensor, nn.Parameter], Tensor]


class SharedState:
    """The optimizer of a model holds this rank's rows of the parameters from now on, and its state is that of rows.

    `rows` has them by name: views into the parameters. Gradients are rows too where it `scatters`. Raises UsageError,
    with nothing changed, where one cannot be.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, placed: Placement, link: Link, *, scatters: bool
    ) -> None:
        named = dict(model.named_parameters())
        for name, parameter in named.items():
            check_parameter(name, parameter)
        self.model, self.placed, self.ranks = model, placed, placed.rows
        self.how = replace(rows_over(placed, link), gathers=False, scatters=scatters)
        self.state_hooks: list[RemovableHandle] = []
        self.is_over = False
        parts = {name: part_of(len(p), self.ranks.rank, self.ranks.world) for name, p in named.items()}
        self.rows = {name: nn.Parameter(p.data[parts[name]], p.requires_grad) for name, p in named.items()}
        self.shards = {n: Shard(n, self.rows[n], p.shape, parts[n], _without_memory(p)) for n, p in named.items()}
        self._whole = named
        self._ids = {id(parameter) for parameter in named.values()}
        self._by_stepped = {id(shard.parameter): shard for shard in self.shards.values()}
        self._masters: Mapping[str, Tensor] = {}
        self._hand_over(optimizer)

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Of the wholes, by name."""
        return {name: shard.shape for name, shard in self.shards.items()}

    @property
    def whole_bytes(self) -> int:
        """Of all parameters."""
        return sum(parameter.nbytes for parameter in self._whole.values())

    @property
    def spelled(self) -> str:
        """What each rank has, the same on all ranks that agree."""
        return self.placed.spelled

    @property
    def in_window(self) -> RowsInWindow:
        """What a window does with rows."""
        rows = {name: shard.rows for name, shard in self.shards.items()}
        return RowsInWindow(self.how.group, rows, has_whole_gradients=not self.how.scatters)

    def has(self, item: object) -> bool:
        """Whether it is one of the parameters."""
        return id(item) in self._ids

    def of_stepped(self, stepped: object) -> Shard | None:
        """What is known of what the optimizer holds."""
        return self._by_stepped.get(id(stepped))

    def has_masters(self, masters: Mapping[str, Tensor]) -> None:
        """The optimizer holds these, by the names of the parameters whose rows' masters they are."""
        self._by_stepped |= {id(master): self.shards[name] for name, master in masters.items()}
        self._masters = masters

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Rows are those of the parameters as they are now, and the optimizer holds them for what it was given since.

        Parameters may have other memory than before (`.data = ...`, `.half()`). Raises UsageError where that cannot be
        shared out.
        """
        for name, shard in self.shards.items():
            whole, rows = self._whole[name].data, shard.parameter
            if not rows.is_set_to(mine := whole[shard.rows]):
                check_parameter(name, self._whole[name])
                rows.data = mine
        self._hand_over(optimizer)

    @property
    def has_gradients_of_its_own(self) -> bool:
        """Whether a backward of the user's left gradients of parameters, and none is of what the optimizer holds."""
        held = (*self.rows.values(), *self._masters.values())
        return any(p.grad is not None for p in self._whole.values()) and all(each.grad is None for each in held)

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
        if self.is_over:
            raise UsageError("a step cannot be taken after step.unshard()")

    def share(self, names: Iterable[str]) -> None:
        """Each rank updated its rows of these parameters: give them to the others; a collective call."""
        ops.share_([self._whole[name].data for name in names], self.how.group)

    def unshard(self, optimizer: torch.optim.Optimizer) -> None:
        """Let the optimizer hold the parameters again, and its state be whole, for good; a collective call."""
        self.check_in_parts()
        while self.state_hooks:
            self.state_hooks.pop().remove()
        for name, master in self._masters.items():
            whole = self._whole[name]
            make_state_whole(optimizer, master, master.shape, partial(self._gathered, whole=whole))
            master.data = self._gathered(master.data, whole)
        self._swap(optimizer, {id(rows): self._whole[name] for name, rows in self.rows.items()}, self._gathered)
        self.is_over = True

    def _hand_over(self, optimizer: torch.optim.Optimizer) -> None:
        """Let the optimizer hold rows of what it holds whole."""
        self._swap(optimizer, {id(p): self.rows[name] for name, p in self._whole.items()}, self._rows_of)

    def _swap(self, optimizer: torch.optim.Optimizer, to: Mapping[int, nn.Parameter], change: _Change) -> None:
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
        return whole[self._by_stepped[id(rows)].rows].clone()

    def _gathered(self, rows: Tensor, whole: nn.Parameter) -> Tensor:
        made = torch.empty_like(whole, dtype=rows.dtype, requires_grad=False)
        begin_gather(made, rows, self.ranks.group).arrive(made)
        return made


def _without_memory(parameter: Tensor) -> Tensor:
    return torch.empty_like(parameter, device="meta", requires_grad=False)

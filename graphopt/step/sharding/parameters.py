"""A model's parameters as this rank's rows of them, whole only for those who capture, evaluate or save.

Parameters stay the same objects, under the same names; what they hold are rows of dimension 0, as many for each rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from graphopt.base.errors import UsageError
from graphopt.base.parts import part_of
from graphopt.compression.link import Link
from graphopt.kernels.sharding.transport import begin_gather, label_of
from graphopt.passes.joint.sharding.how import RowsOver
from graphopt.passes.window.share_rows import RowsInWindow
from graphopt.step.sharding.guard import Guard
from graphopt.step.sharding.placement import Placement
from graphopt.step.sharding.whole_state import make_state_whole


@dataclass(frozen=True)
class Shard:
    """A parameter's rows on this rank, and the shape of the whole. `stand_in` has that shape, and no memory."""

    name: str
    parameter: nn.Parameter
    shape: torch.Size
    rows: slice
    stand_in: Tensor


class ShardedParameters:
    """The parameters of a model, shared out over ranks from now on; the optimizer's state with them, as far as it is.

    Raises UsageError, with nothing changed, where one cannot be.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, placed: Placement, link: Link) -> None:
        named = dict(model.named_parameters())
        for name, parameter in named.items():
            check_parameter(name, parameter)
        self.model, self.placed, self.ranks = model, placed, placed.rows
        self.is_whole = self.is_over = False
        #: Of hooks that give the state: see `graphopt.step.sharding.state`.
        self.state_hooks: list[RemovableHandle] = []
        self.how = rows_over(placed, link)
        #: The first name of a parameter, and all that it has in the model: more than one where it is tied.
        self.names: dict[str, list[str]] = {name: [] for name in named}
        first = {id(parameter): name for name, parameter in named.items()}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            self.names[first[id(parameter)]].append(name)
        self.shards = {name: self._shard(name, parameter, optimizer) for name, parameter in named.items()}
        self._by_id = {id(shard.parameter): shard for shard in self.shards.values()}
        self._by_master: dict[int, Shard] = {}
        self._masters: Mapping[str, Tensor] = {}
        self._refusing = [Guard(module, self._wholes_in(module)) for module in model.modules() if module._parameters]

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Of the wholes, by name."""
        return {name: shard.shape for name, shard in self.shards.items()}

    @property
    def whole_bytes(self) -> int:
        """Of all of them, whole."""
        return sum(shard.shape.numel() * shard.parameter.itemsize for shard in self.shards.values())

    def has(self, item: object) -> bool:
        """Whether it is one of the parameters."""
        return id(item) in self._by_id

    def of_stepped(self, stepped: object) -> Shard | None:
        """What is known of what the optimizer holds."""
        return self._by_id.get(id(stepped)) or self._by_master.get(id(stepped))

    def has_masters(self, masters: Mapping[str, Tensor]) -> None:
        """The optimizer holds these, by the names of the parameters whose masters they are."""
        self._by_master = {id(master): self.shards[name] for name, master in masters.items()}
        self._masters = masters

    @property
    def spelled(self) -> str:
        """What each rank has, the same on all ranks that agree."""
        return self.placed.spelled

    @property
    def in_window(self) -> RowsInWindow:
        """What a window does with rows: it has nothing else."""
        return RowsInWindow(self.how.group)

    def share(self, names: Iterable[str]) -> None:
        """Rows are gathered where they are read."""

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """The optimizer holds the parameters themselves."""

    @contextmanager
    def as_captured(self) -> Iterator[None]:
        """Inside, parameters have the shape of the whole, and no memory: to be traced, not to be read."""
        for guard in self._refusing:
            guard.take_off()
        rows = [shard.parameter.data for shard in self.shards.values()]
        for shard in self.shards.values():
            shard.parameter.data = shard.stand_in
        try:
            yield
        finally:
            for shard, mine in zip(self.shards.values(), rows, strict=True):
                shard.parameter.data = mine
            for guard in self._refusing:
                guard.put_on()

    @contextmanager
    def whole(self) -> Iterator[nn.Module]:
        """Inside, the model has its whole parameters, on every rank; a collective call.

        What is written to them counts: at the end each rank keeps its rows.
        """
        if self.is_whole:
            yield self.model
            return
        rows = {name: shard.parameter.data for name, shard in self.shards.items()}
        # all are there before one is changed: another rank may be lost meanwhile
        gathered = {name: self._gathered(shard, rows[name]) for name, shard in self.shards.items()}
        for name, shard in self.shards.items():
            shard.parameter.data = gathered.pop(name)
        self.is_whole = True
        try:
            yield self.model
        finally:
            self.is_whole = False
            for name, shard in self.shards.items():
                rows[name].copy_(shard.parameter.data[shard.rows])
                shard.parameter.data = rows[name]

    def check_in_parts(self) -> None:
        """Raise UsageError where the parameters are whole, for a while or for good."""
        if self.is_whole:
            raise UsageError("a step cannot be taken inside of `with step.whole_model():`, nor after step.unshard()")

    def unshard(self, optimizer: torch.optim.Optimizer) -> None:
        """Make the parameters, and the optimizer's state of them, whole again, for good; a collective call."""
        if self.is_whole:
            raise UsageError("step.unshard() inside of `with step.whole_model():`, or a second time")
        for guard in self._refusing:
            guard.remove()
        while self.state_hooks:
            self.state_hooks.pop().remove()
        for shard in self.shards.values():
            rows, stepped = shard.parameter.data, self._masters.get(shard.name, shard.parameter)
            make_state_whole(optimizer, stepped, rows.shape, partial(self._gathered, shard))
            if stepped is not shard.parameter:
                stepped.data = self._gathered(shard, stepped.data)
            shard.parameter.data = self._gathered(shard, rows)
        self.is_whole = self.is_over = True

    def _wholes_in(self, module: nn.Module) -> dict[str, torch.Size]:
        """The shapes of a module's own parameters, whole."""
        own = ((name, self._by_id[id(p)].shape) for name, p in module._parameters.items() if p is not None)
        return dict(own)

    def _gathered(self, shard: Shard, rows: Tensor) -> Tensor:
        whole = rows.new_empty(shard.shape)
        begin_gather(whole, rows, self.ranks.group).arrive(whole)
        return whole

    def _shard(self, name: str, parameter: nn.Parameter, optimizer: torch.optim.Optimizer) -> Shard:
        whole = parameter.data
        rows = part_of(len(whole), self.ranks.rank, self.ranks.world)
        stand_in = torch.empty_like(whole)
        stand_in.untyped_storage().resize_(0)
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor) and value.shape == whole.shape:
                optimizer.state[parameter][key] = value[rows].clone()
        parameter.data = whole[rows].clone()
        return Shard(name, parameter, whole.shape, rows, stand_in)


def rows_over(placed: Placement, link: Link) -> RowsOver:
    """How a step's graph shares parameters out."""
    copies = label_of(placed.copies.group, "copies", placed.ranks.group) if placed.copies else ""
    rows = placed.rows
    return RowsOver(
        label_of(rows.group, "rows", placed.ranks.group), rows.world, partial(_seconds, link, rows.world), copies
    )


def _seconds(link: Link, world: int, whole_bytes: int) -> float:
    """Of gathering, or scattering, so many bytes in all: each rank sends its own rows to all others."""
    return link.seconds(whole_bytes * (world - 1) // world, 1)


def check_parameter(name: str, parameter: nn.Parameter) -> None:
    """Raise UsageError for one whose rows cannot be shared out."""
    if parameter.ndim == 0:
        raise UsageError(
            f"shard=: the parameter {name} is a single number, which has no rows to share out: make it one of shape [1]"
        )
    if type(parameter.data) is not Tensor or parameter.layout != torch.strided:
        raise UsageError(f"shard=: the parameter {name} is {type(parameter.data).__name__}, {parameter.layout}")
    if not parameter.is_contiguous():
        raise UsageError(
            f"shard=: the parameter {name} of shape {list(parameter.shape)} has strides {list(parameter.stride())}; "
            "rows are shared out of contiguous parameters: model.to(memory_format=torch.contiguous_format)"
        )
    if parameter.grad is not None:
        raise UsageError(f"shard=: the parameter {name} holds a gradient: optimizer.zero_grad(set_to_none=True) first")

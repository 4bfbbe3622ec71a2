"""A model whose blocks are sharded each for itself, with one budget: what stands in front of its forward.

The first step captures, with as little kept in each block as can be. The next ones are measured, still so: what is
there besides the blocks, and where. Then all ranks divide the budget, at the beginning of the same step, and each
later step is measured against what was predicted.
"""

from __future__ import annotations

import warnings
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from graphopt.base.errors import BudgetError, InfeasibleError
from graphopt.base.units import format_bytes
from graphopt.device.peak_window import peak_window
from graphopt.device.ranks import Ranks, ranks_of
from graphopt.device.storages import tensors_in
from graphopt.fsdp.agree import BlockChain, share_alone, share_together
from graphopt.fsdp.block import Block, GraphKey, KnownPoints, key_of
from graphopt.fsdp.step_meter import StepMeter
from graphopt.fsdp.step_start import StepStart
from graphopt.graph.captured_graph import CapturedGraph
from graphopt.plan.block_points import BlockPoint, block_point
from graphopt.plan.chain_shares import Beside, Curves, chain_peak_bytes, smallest
from graphopt.run.model.request import Request
from graphopt.run.model.wrapping import sharding_group
from graphopt.run.watch.update_hook import heed_updates

#: Steps that are measured with the least kept before the budget is divided: of a backend that frees a message late, one
#: alone may not show it.
MEASURED_STEPS = 2
#: Calls in training mode before that, one of which captures.
_CALLS_BEFORE = 1 + MEASURED_STEPS
_KEPT_STEPS = 1024

#: Which blocks ran, in order, with which graphs.
Kind = tuple[tuple[int, GraphKey], ...]


@dataclass(frozen=True)
class MeasuredWhole:
    """A step's peak as planned (0: not planned yet) and as measured, in bytes of this rank."""

    predicted_bytes: int
    measured_bytes: int


@dataclass(frozen=True)
class WholePlan:
    """What is planned for the blocks, in the order in which they run, and what is there besides; bytes of one rank."""

    blocks: tuple[int, ...]
    points: tuple[BlockPoint, ...]
    eager: tuple[BlockPoint, ...]
    beside: Beside
    budget_bytes: int
    minimum_bytes: int

    @property
    def peak_bytes(self) -> int:
        """The highest number of bytes at any time of a step, as predicted."""
        return chain_peak_bytes(self.beside, self.points)

    @property
    def eager_peak_bytes(self) -> int:
        """The same with nothing recomputed."""
        return chain_peak_bytes(self.beside, self.eager)


@dataclass
class _KnownKind:
    """What is known of steps with the same graphs."""

    graphs: list[CapturedGraph]
    beside: Beside
    steps: int = 1
    plan: WholePlan | None = None


@dataclass(eq=False)
class Whole:
    """See the module. `forget_plans` has the sessions of the blocks plan anew."""

    root: nn.Module
    blocks: Sequence[Block]
    points: KnownPoints
    request: Request
    device: torch.device
    forget_plans: Callable[[int], None]
    history: deque[MeasuredWhole] = field(default_factory=lambda: deque(maxlen=_KEPT_STEPS))
    plan: WholePlan | None = None
    _kinds: dict[Kind, _KnownKind] = field(default_factory=dict)
    _calls: int = 0
    _told: bool = False
    _due: _KnownKind | None = None

    def __post_init__(self) -> None:
        self._window = peak_window(self.device)
        self._start = StepStart(self.root, self.device)
        if self.request.optimizer is not None:
            self._start.optimizers.append(weakref.ref(self.request.optimizer))
        heed_updates(self.root, self)
        self._meter: StepMeter | None = None

    @torch._dynamo.disable  # type: ignore[untyped-decorator]
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model; a training step begins here."""
        self._step_ends()
        if self.root.training and torch.is_grad_enabled():
            self._step_begins(args, kwargs)
        return self.root._call_impl(*args, **kwargs)

    def updated_by(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer of the model is met: what it holds counts."""
        self._start.optimizers.append(weakref.ref(optimizer))

    def update_begins(self) -> None:
        """It begins to step."""
        if self._meter is not None:
            self._meter.resumes()

    def update_ends(self) -> None:
        """It has stepped."""
        if self._meter is not None:
            self._meter.pauses()

    def _step_begins(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._calls += 1
        if self._calls == _CALLS_BEFORE + 1:
            self._divide_together()
        elif self._due is not None and self._calls > _CALLS_BEFORE:
            self._divide_alone(self._due)
        if self._window is None:
            return
        beside_bytes = self._start.beside_bytes(self._window.live_bytes(), tensors_in((args, kwargs)))
        self._meter = StepMeter(self._window, beside_bytes + self.request.reserve_bytes)
        for block in self.blocks:
            block.meter, block.was_planned = self._meter, False

    def _step_ends(self) -> None:
        meter, self._meter = self._meter, None
        if meter is None:
            return
        meter.between()
        was_planned = any(block.was_planned for block in self.blocks)
        for block in self.blocks:
            block.meter = None
        if was_planned or not meter.ran or not meter.is_whole:
            return
        ran = [self.blocks[number] for number in meter.ran]
        graphs = [block.graph for block in ran if block.graph is not None]
        kind = tuple((block.number, key_of(graph)) for block, graph in zip(ran, graphs, strict=True))
        self._measured(kind, graphs, meter)

    def _measured(self, kind: Kind, graphs: list[CapturedGraph], meter: StepMeter) -> None:
        known = self._kinds.get(kind)
        if known is None:
            known = self._kinds[kind] = _KnownKind(graphs, meter.beside())
        elif known.plan is None:
            known.beside, known.steps = known.beside.with_most(meter.beside()), known.steps + 1
        plan = known.plan
        self.history.append(MeasuredWhole(plan.peak_bytes if plan else 0, meter.peak_bytes))
        if plan is None:
            self._due = known if known.steps >= MEASURED_STEPS else self._due
        elif meter.peak_bytes > self.request.budget_bytes:
            self._exceeded(known, meter)

    def _exceeded(self, known: _KnownKind, meter: StepMeter) -> None:
        """A step took more than the budget: what was there besides is what it is planned with from now on."""
        assert known.plan is not None
        over = meter.peak_bytes - self.request.budget_bytes
        text = (
            f"graphopt: a training step took {format_bytes(meter.peak_bytes)}, {format_bytes(over)} above the budget, "
            f"where {format_bytes(known.plan.peak_bytes)} were planned"
        )
        if self.request.on_excess == "raise":
            raise BudgetError(text, meter.peak_bytes)
        if not self._told:
            warnings.warn(f"{text}: what it shows besides the blocks is counted from now on", stacklevel=4)
            self._told = True
        known.beside = known.beside.with_most(meter.beside())
        self._due = known

    def _curves(self, known: _KnownKind) -> Curves:
        return [self.points.of(graph) for graph in known.graphs]

    def _divide_together(self) -> None:
        """The one collective call: all ranks come to it at the beginning of the same step."""
        known, self._due = self._due, None
        ranks = self._ranks()
        if ranks is None:
            if known is not None:
                self._divide_alone(known)
            return
        chain = BlockChain() if known is None else self._chain(known)
        curves = [] if known is None else self._curves(known)
        try:
            chain, schedules = share_together(ranks, chain, curves)
        except InfeasibleError as error:
            raise self._budget_error(error.minimum_bytes, known) from None
        if known is not None and schedules:
            known.beside = chain.beside
            self._in_force(known, [block_point(*pair) for pair in zip(known.graphs, schedules, strict=True)])

    def _divide_alone(self, known: _KnownKind) -> None:
        """Batches of other shapes, or a step that took more: no other rank has to do with it."""
        self._due = None
        chain = self._chain(known)
        try:
            schedules = share_alone(chain, self._curves(known))
        except InfeasibleError as error:
            if known.plan is None:
                raise self._budget_error(error.minimum_bytes, known) from None
            # what was measured once may not come again, and an error of one rank ends all
            self._in_force(known, smallest(self._curves(known), known.beside))
            return
        self._in_force(known, [block_point(*pair) for pair in zip(known.graphs, schedules, strict=True)])

    def _chain(self, known: _KnownKind) -> BlockChain:
        hashes = tuple(graph.step.graph_hash for graph in known.graphs)
        return BlockChain(hashes, known.beside, self.request.budget_bytes)

    def _in_force(self, known: _KnownKind, points: Sequence[BlockPoint]) -> None:
        kind = next(kind for kind, each in self._kinds.items() if each is known)
        least = chain_peak_bytes(known.beside, smallest(self._curves(known), known.beside))
        eager = tuple(block_point(graph, graph.captured_schedule) for graph in known.graphs)
        numbers = tuple(number for number, _ in kind)
        plan = WholePlan(numbers, tuple(points), eager, known.beside, self.request.budget_bytes, least)
        self.plan = known.plan = replace(plan, minimum_bytes=min(least, plan.peak_bytes))
        for (number, key), point in zip(kind, points, strict=True):
            if self.blocks[number].choose(key, point):
                self.forget_plans(number)

    def _budget_error(self, minimum_bytes: int, known: _KnownKind | None) -> BudgetError:
        beside = f", of which {format_bytes(min(known.beside.between))} are there all the time" if known else ""
        return BudgetError(
            f"{format_bytes(self.request.budget_bytes)} ({self.request.budget_bytes:,} bytes) is too small for the "
            f"model on one rank: with the least kept in its {len(self.blocks)} blocks, steps need "
            f"{format_bytes(minimum_bytes)} ({minimum_bytes:,} bytes){beside}. What to try: a larger budget; smaller "
            "batches; more ranks; blocks for what is none yet",
            minimum_bytes,
        )

    def _ranks(self) -> Ranks | None:
        group = self.request.group or sharding_group([self.root, *(block.module for block in self.blocks)])
        return ranks_of(group) if group is not None else None

"""A captured micro-batch graph, and what it is at sizes of its inputs: planned by itself, with code that is shared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from graphopt.device.snapshot import generators_kept
from graphopt.emit.emit import emit_whole
from graphopt.emit.many_schedules import MOST_SCHEDULES
from graphopt.graph.captured_graph import CapturedGraph, Decision
from graphopt.graph.roles import DESCRIPTOR, Accumulator
from graphopt.graph.transfers import decided_step
from graphopt.lower.compiler import Compiler
from graphopt.plan.graph_study import GraphStudy
from graphopt.plan.other_sizes import GraphAtSizes
from graphopt.plan.planned_graph import PlannedGraph
from graphopt.run.graphs.input_symbols import InputSymbols, Sizes

if TYPE_CHECKING:
    from graphopt.lower.halves import LoweredWhole


@dataclass(frozen=True, eq=False)
class Learning:
    """Parameters that get gradients: whose the graph returns, and whose it uses up itself."""

    returned: tuple[torch.Tensor, ...]
    used: tuple[torch.Tensor, ...]


@dataclass(frozen=True, eq=False)
class MicroGraph:
    """A captured micro-batch graph, for inputs of one size or of many; `symbols` are those of its inputs.

    Its inputs are Dynamo's flat inputs, and ours. `guards` is what has been asked of
    symbols, `num_guards` of which Dynamo knows: it looks at them while it captures, and never again.
    """

    at_sizes: GraphAtSizes
    symbols: InputSymbols
    learning: Learning
    guards: Sequence[Any]
    num_guards: int
    compiler: Compiler = "eager"
    #: The graphs to run, the least recently used first.
    _code: dict[Decision, fx.GraphModule | LoweredWhole] = field(default_factory=dict)

    @property
    def captured(self) -> CapturedGraph:
        """The graph at the sizes of its capture."""
        return self.at_sizes.graph

    def module(self, decision: Decision) -> fx.GraphModule | LoweredWhole:
        """The graph to run, boxed: (loss, a gradient or None for each of the joint graph's inputs)."""
        found = self._code.pop(decision, None) or self._emitted(decision)
        self._code[decision] = found
        at_hand = self.at_sizes.pool.at_hand if self.at_sizes.pool else {}
        at_hand[decision.schedule] = None
        # of one size no other schedule comes back
        while len(self._code) > (MOST_SCHEDULES if self.at_sizes.pool else 1):
            oldest = next(iter(self._code))
            del self._code[oldest]
            at_hand.pop(oldest.schedule, None)
        return found

    def _emitted(self, decision: Decision) -> fx.GraphModule | LoweredWhole:
        with generators_kept():
            emitted = emit_whole(decided_step(self.captured, decision), decision.schedule, decision.depot)
            if self.compiler == "eager":
                return emitted
            from graphopt.lower.halves import LoweredWhole

            return LoweredWhole(emitted)

    @cached_property
    def accumulators(self) -> dict[int, torch.Tensor]:
        """Flat input -> the (fake) accumulator of its gradient."""
        roles = ((node.meta[DESCRIPTOR], node.meta["val"]) for node in self._placeholders)
        return {role.index: value for role, value in roles if isinstance(role, Accumulator)}

    @cached_property
    def gradients(self) -> dict[int, int]:
        """Flat input -> position among the graph's outputs of the gradient that is returned for it."""
        joint = self.captured.step.joint
        primals = joint.primals
        return {primals[i].meta[DESCRIPTOR].idx: joint.num_forward_outputs + i for i in joint.gradients}

    @property
    def loss(self) -> torch.Tensor:
        """The (fake) loss."""
        node = self.captured.step.joint.forward_outputs[0]
        assert isinstance(node, fx.Node)
        return node.meta["val"]  # type: ignore[no-any-return]

    @property
    def _placeholders(self) -> list[fx.Node]:
        return list(self.captured.step.graph_module.graph.find_nodes(op="placeholder"))


@dataclass(frozen=True, eq=False)
class Micro:
    """A micro-batch graph at sizes of its inputs, studied and planned when that is first asked for."""

    graph: MicroGraph
    sizes: Sizes
    plan: Callable[[Micro], PlannedGraph]

    @cached_property
    def study(self) -> GraphStudy:
        """What there is to know of it whatever the room."""
        with generators_kept():
            return self.graph.at_sizes.study(self.sizes)

    @cached_property
    def planned(self) -> PlannedGraph:
        """The graph with its plan; raises BudgetError where it does not fit."""
        with generators_kept():
            planned = self.plan(self)
        asked = [str(guard.expr) for guard in self.graph.guards[self.graph.num_guards :]]
        assert not asked, f"planning asked of a size what Dynamo does not guard: {asked}"
        return planned

    @cached_property
    def module(self) -> fx.GraphModule | LoweredWhole:
        """The graph to run, that of other sizes too with the same schedule."""
        return self.graph.module(self.planned.decision)

    @property
    def input_roles(self) -> tuple[object, ...]:
        """The descriptor of each input of what is run, in order: AOTAutograd's, or one of graphopt.graph.roles."""
        graph = self.planned.captured.step.graph_module.graph
        return tuple(node.meta[DESCRIPTOR] for node in graph.find_nodes(op="placeholder"))

    @property
    def is_planned(self) -> bool:
        """Whether a plan of it was asked for."""
        return "planned" in self.__dict__

    def forget_plan(self) -> None:
        """It is planned anew when that is next asked for."""
        for made in ("planned", "module"):
            self.__dict__.pop(made, None)

    def forget_study(self) -> None:
        """It is studied anew too."""
        self.forget_plan()
        self.forget_known()

    def forget_known(self) -> None:
        """It is studied anew, and its plan stays."""
        self.__dict__.pop("study", None)


@dataclass(frozen=True, eq=False)
class MicroCall:
    """A graph, and the tensors that Dynamo hands to it: parameters, buffers and the micro-batch."""

    micro: Micro
    flat: tuple[Any, ...]

"""Which operator took what a step was measured above its plan: the step behind it is run node by node, and each read.

No operator runs for that which would not run anyway: it is an ordinary step, whose bits are eager's. What operators
took is counted for them alone from then on, where before it is kept free beside the whole plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import fx

from graphopt.device.peak_window import CpuWindow
from graphopt.emit.metered import run_metered
from graphopt.emit.runnable import Runnable
from graphopt.graph.captured_graph import TakenByOp
from graphopt.plan.found_scratch import SearchedGraph, StepAbovePlan, found_scratch, more_than_planned
from graphopt.plan.other_sizes import GraphAtSizes
from graphopt.problem.found_scratch import FoundScratch

#: Steps that are run node by node for one that was above its plan: data that takes as much may not come in the first.
_MOST_STEPS = 4
#: Operators that a message names; and those that took less than this share of what the first took more are not.
_MOST_NAMED, _LEAST_SHARE = 3, 1 / 64
LOOKS_FOR_IT = " Meanwhile steps are run operator by operator, to find the one that takes it."


@dataclass(frozen=True)
class Located:
    """The operators that took more than planned, most first, and what is still to be kept free beside the plan."""

    found: tuple[FoundScratch, ...]
    beside_bytes: int

    def __str__(self) -> str:
        named = "; ".join(map(str, self.found[:_MOST_NAMED]))
        more = f"; and {len(self.found) - _MOST_NAMED} others" if len(self.found) > _MOST_NAMED else ""
        beside = f" A further {self.beside_bytes:,} bytes are kept free beside it." if self.beside_bytes else ""
        return (
            f"what was above the plan is the memory of an operator, which depends on its data or was not measured: "
            f"{named}{more}. From the next call on the plan counts it there, and nowhere else.{beside}"
        )


class ScratchSearch:
    """Looks for operators that take more than planned, from a step that was above its plan until they are found.

    `found` are those of all searches, by name and line, as they were seen last.
    """

    def __init__(self) -> None:
        self.found: dict[tuple[str, str], FoundScratch] = {}
        self._above: list[StepAbovePlan] = []
        self._taken: dict[GraphAtSizes, dict[str, TakenByOp]] = {}
        self._runnables: list[Runnable] = []
        self._steps, self._window = 0, CpuWindow()

    @property
    def is_running(self) -> bool:
        """Whether steps are to be run node by node."""
        return bool(self._above)

    @property
    def has_run(self) -> bool:
        """Whether something was run node by node since the step was above its plan."""
        return bool(self._taken)

    def begins(self, above: StepAbovePlan) -> None:
        """That step was above its plan."""
        self._above.append(above)
        self._steps = 0

    def run(self, at_sizes: GraphAtSizes, module: fx.GraphModule, args: list[Any]) -> Any:
        """Run this graph, or a half of it, node by node."""
        return run_metered(module, args, self._window, self._taken.setdefault(at_sizes, {}))

    def runs(self, at_sizes: GraphAtSizes, runnables: Sequence[Runnable]) -> None:
        """These halves of a graph are about to run: node by node, for as long as the search does."""
        for each in runnables:
            each.observer = partial(self.run, at_sizes)
        self._runnables += runnables

    def ends(self) -> None:
        """Look no further."""
        for each in self._runnables:
            each.observer = None
        for known in (self._above, self._taken, self._runnables):
            known.clear()

    def ends_step(self, step: StepAbovePlan, room_bytes: int) -> Located | None:
        """A step was run node by node: what it shows, which is counted from now on; None where it shows nothing.

        `room_bytes` are there for the graphs: what leaves no plan for them is not counted, and they stay as they are.
        """
        self._steps += 1
        before = {each.at_sizes: dict(each.at_sizes.taken) for each in step.graphs}
        found = [(each, op) for each in dict.fromkeys(step.graphs) for op in self._learns(each)]
        located = self._located(step, found) if found else None
        if located is not None and located.beside_bytes + step.least_bytes() <= room_bytes:
            self.found |= {(op.name, op.source): op for op in located.found}
            self.ends()
            return located
        for each in step.graphs if found else ():
            each.at_sizes.taken = before[each.at_sizes]
            each.forget_study()
        if located is not None or self._steps >= _MOST_STEPS:
            self.ends()
        return None

    def _learns(self, graph: SearchedGraph) -> list[FoundScratch]:
        captured = graph.planned.captured
        more = more_than_planned(captured, self._taken.get(graph.at_sizes, {}))
        if more:
            _count(graph, more)
        return found_scratch(captured, more)

    def _located(self, step: StepAbovePlan, found: list[tuple[SearchedGraph, FoundScratch]]) -> Located | None:
        """None where what was found is no part of any peak that was above its plan."""
        steps = [*self._above, step]
        above_bytes = max(each.above_bytes for each in steps)
        beside_bytes = max(each.unexplained_bytes() for each in steps)
        if beside_bytes >= above_bytes:
            return None
        operators = [op for _, op in found]
        if beside_bytes > 0 and len(found) == 1:
            # nothing else takes more than planned: in the step that was above its plan it was that operator too
            ((graph, op),) = found
            seen = graph.at_sizes.taken[op.name]
            _count(graph, {op.name: replace(seen, scratch_bytes=seen.scratch_bytes + beside_bytes)})
            operators = [replace(op, taken_bytes=op.taken_bytes + beside_bytes)]
            beside_bytes = max(each.unexplained_bytes() for each in steps)
        operators.sort(key=lambda op: -op.more_bytes)
        least_bytes = operators[0].more_bytes * _LEAST_SHARE
        return Located(tuple(op for op in operators if op.more_bytes >= least_bytes), max(beside_bytes, 0))


def _count(graph: SearchedGraph, more: Mapping[str, TakenByOp]) -> None:
    known = graph.at_sizes.taken
    graph.at_sizes.taken = known | {name: seen.most(known.get(name, seen)) for name, seen in more.items()}
    graph.forget_study()

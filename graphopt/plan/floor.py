"""What would lower the least budget of a step, and by how much.

Each change is made to the smallest plan's values, and the simulator replays its schedule: at least so many bytes are
saved. A planner that knew of the change might save more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from graphopt.base.units import format_bytes
from graphopt.graph.captured_graph import CapturedGraph
from graphopt.graph.step_graph import ValueInfo
from graphopt.kernels.offload.link import DepotLink
from graphopt.kernels.streaming.blocks import SHARE, SLOTS
from graphopt.plan.graph_study import GraphStudy
from graphopt.plan.pieces import smallest_forms
from graphopt.problem.problem import Problem, Value
from graphopt.problem.schedule import Schedule, simulate

#: Savings that are worth a line, as a share of what the step needs.
LEAST_SHARE = 0.01
#: A link that never makes anything wait: what moving values may save, not what it costs.
_FREE_LINK = DepotLink(1e15, 1e15, 0.0)
#: Bytes of a state in 8 bits, over those in float32.
_SMALL_STATE = 0.25
#: Bytes of the blocks in which state comes from elsewhere, over those of the state.
_SLOTS_SHARE = SLOTS / SHARE


@dataclass(frozen=True)
class FloorChange:
    """A change of the model or its training, and by how many bytes at least it lowers the least budget.

    "about" in `what` says that it may be less: what a model does in float32 by itself is not known.
    """

    what: str
    saved_bytes: int

    def __str__(self) -> str:
        """In words, with bytes rounded down."""
        unit = 1024 ** max(int(math.log(max(self.saved_bytes, 1), 1024)), 0)
        tenths = 10 * self.saved_bytes // unit
        return f"{self.what} {format_bytes(-(-tenths * unit // 10) if unit > 1 else self.saved_bytes)}"


def floor_changes(
    study: GraphStudy, resident_bytes: Mapping[str, int], *, asks_planners: bool = True
) -> list[FloorChange]:
    """The changes that lower the floor of a graph beside what is resident, those that save most first.

    Without `asks_planners` only what takes milliseconds to know.
    """
    floor_bytes = sum(resident_bytes.values()) + study.minimum_bytes
    found = [*_of_values(study), *_of_state(study, resident_bytes)]
    if asks_planners:
        found += _of_forms(study)
    worth = [change for change in found if change.saved_bytes >= LEAST_SHARE * floor_bytes]
    return sorted(worth, key=lambda change: -change.saved_bytes)


def _of_values(study: GraphStudy) -> Iterator[FloorChange]:
    graph, schedule = study.graph, study.curve[0].schedule
    before = simulate(graph.problem, schedule).peak_bytes

    def saved(problem: Problem, schedule: Schedule = schedule) -> int:
        return before - simulate(problem, schedule).peak_bytes

    kinds = [info.kind for info in graph.step.values]
    stay = tuple(value for value in graph.problem.outputs if kinds[value] != "gradients")
    yield FloorChange("train_step(update_in_backward=True)", saved(replace(graph.problem, outputs=stay)))
    returned = tuple(value for value in graph.problem.outputs if kinds[value] != "outputs" or _is_small(graph, value))
    yield FloorChange(
        "returning the loss alone (no logits, use_cache=False)", saved(replace(graph.problem, outputs=returned))
    )
    yield FloorChange("half the batch", saved(_scaled(graph, 0.5, lambda info: info.kind != "gradients")))


def _of_state(study: GraphStudy, resident_bytes: Mapping[str, int]) -> Iterator[FloorChange]:
    graph, schedule = study.graph, study.curve[0].schedule
    halves = _scaled(graph, 0.5, lambda info: info.dtype == "float32")
    own_bytes = simulate(graph.problem, schedule).peak_bytes - simulate(halves, schedule).peak_bytes
    parameters = [info for info in graph.step.values if info.kind == "resident" and info.dtype == "float32"]
    if parameters:
        share = 0.5 * resident_bytes.get("parameters", 0)
        yield FloorChange("the model in bfloat16 about", own_bytes + int(share))
    optimizer_bytes = resident_bytes.get("optimizer", 0)
    if optimizer_bytes:
        elsewhere = "train_step(offload_optimizer='file') (on a GPU 'host') about"
        yield FloorChange(elsewhere, int((1 - _SLOTS_SHARE) * optimizer_bytes))
        what = "optimizer state in 8 bits (torchao's AdamW8bit, for one) about"
        yield FloorChange(what, int((1 - _SMALL_STATE) * optimizer_bytes))


def _of_forms(study: GraphStudy) -> Iterator[FloorChange]:
    if not study.is_reordered and study.graph.forms.every:
        least = smallest_forms([study.reordered()])[0].minimum_bytes
        yield FloorChange("numerics='reordered'", study.minimum_bytes - least)
    if not study.graph.moved and study.kept is None:
        form = study.moving(_FREE_LINK, 1.0)
        if form is not None:
            yield FloorChange("offload='file' (on a GPU 'host')", study.minimum_bytes - form.minimum_bytes)


def _is_small(graph: CapturedGraph, value: int) -> bool:
    """Such as a loss: some numbers."""
    return graph.problem.values[value].bytes <= 512


def _scaled(graph: CapturedGraph, by: float, of: Callable[[ValueInfo], bool]) -> Problem:
    """The problem with some values so much as large, their ops' workspace too."""
    infos, problem = graph.step.values, graph.problem
    values = tuple(
        Value(int(value.bytes * by)) if of(info) else value for info, value in zip(infos, problem.values, strict=True)
    )
    ops = tuple(
        replace(op, workspace_bytes=int(op.workspace_bytes * by)) if all(of(infos[v]) for v in op.outputs) else op
        for op in problem.ops
    )
    return replace(problem, values=values, ops=ops)

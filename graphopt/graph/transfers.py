"""A step graph of which some values may be moved out of memory and fetched back, beside being kept or made again.

Behind an op whose outputs may be moved stand two more: one that hands them on, and one that tells that they are
written. Run right behind their op, the first hands on what was just made, and costs nothing. Run again, or apart, it
fetches: from its op it needs nothing but that it was run. To planners it is an op like any other, whose recomputation
reads nothing and takes as long as the transfer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from graphopt.graph.captured_graph import CapturedGraph, Decision
from graphopt.graph.step_graph import OpInfo, StepGraph, Transfer, ValueInfo
from graphopt.problem.problem import Op, Problem, Value
from graphopt.problem.schedule import Schedule


@dataclass(frozen=True)
class Placed:
    """Where the ops of a graph are, once it has transfers: `new[op]`, and of a moved op the two behind it."""

    new: Mapping[int, int]

    def fetch(self, op: int) -> int:
        """What hands on, or fetches, what `op` made."""
        return self.new[op] + 1

    def settle(self, op: int) -> int:
        """What tells that it is written."""
        return self.new[op] + 2


def placed(count: int, moved: Sequence[int]) -> Placed:
    """Where `count` ops are, of which those `moved` have two more behind them."""
    behind = set(moved)
    new, at = {}, 0
    for op in range(count):
        new[op] = at
        at += 3 if op in behind else 1
    return Placed(new)


def step_with_transfers(step: StepGraph, moved: Sequence[int]) -> StepGraph:
    """The step with two more ops behind each of those `moved`, and a token of no bytes for each."""
    places = placed(len(step.ops), moved)
    behind = set(moved)
    values, ops = list(step.values), []
    for number, op in enumerate(step.ops):
        if number not in behind:
            ops.append(op)
            continue
        assert op.node is not None
        token = len(values)
        values.append(ValueInfo(f"{op.name}_token", op.node, "activations", 0, (1,), "int64"))
        ops.append(replace(op, outputs=(token,)))
        ops.append(_transfer(op, f"{op.name}_fetched", (token,), op.outputs, Transfer(places.new[number], True)))
        ops.append(_transfer(op, f"{op.name}_written", op.outputs, (), Transfer(places.new[number], False)))
    return replace(step, ops=tuple(ops), values=tuple(values), boundary=places.new[step.boundary])


def problem_with_transfers(problem: Problem, moved: Sequence[int], fetch_seconds: Mapping[int, float]) -> Problem:
    """The same for a problem: a moved op holds its outputs as workspace, until the op behind it hands them on."""
    behind = set(moved)
    values, ops = list(problem.values), []
    for number, op in enumerate(problem.ops):
        if number not in behind:
            ops.append(op)
            continue
        token = len(values)
        values.append(Value(0))
        own_bytes = sum(problem.values[value].bytes for value in op.outputs)
        ops.append(replace(op, outputs=(token,), workspace_bytes=op.workspace_bytes + own_bytes))
        ops.append(Op(f"{op.name}_fetched", fetch_seconds[number], 0, (token,), op.outputs, op.backward))
        ops.append(Op(f"{op.name}_written", 0.0, 0, op.outputs, (), op.backward))
    return Problem(tuple(values), tuple(ops), problem.outputs)


def graph_with_transfers(
    graph: CapturedGraph, moved: Sequence[int], fetch_seconds: Mapping[int, float]
) -> CapturedGraph:
    """A captured graph with transfers of what the ops `moved` make; seconds are those of fetching it."""
    return replace(
        graph,
        step=step_with_transfers(graph.step, moved),
        problem=problem_with_transfers(graph.problem, moved, fetch_seconds),
        moved=tuple(moved),
    )


def fetch_ops(step: StepGraph) -> tuple[int, ...]:
    """The ops that hand on, or fetch, what those in front of them made, in the order of these."""
    return tuple(i for i, op in enumerate(step.ops) if op.transfer is not None and op.transfer.is_fetch)


def fetched_values(step: StepGraph, schedule: Schedule) -> dict[int, tuple[int, ...]]:
    """By the places at which a schedule fetches: the values that are read before they are there anew.

    Right behind the op itself nothing is fetched, nor where nobody reads it.
    """
    wanted: set[int] = set()
    found: dict[int, tuple[int, ...]] = {}
    for place in range(len(schedule) - 1, -1, -1):
        op = step.ops[schedule[place]]
        transfer, read = op.transfer, wanted.intersection(op.outputs)
        if transfer is not None and transfer.is_fetch and read and (not place or schedule[place - 1] != transfer.of):
            found[place] = tuple(value for value in op.outputs if value in read)
        wanted.difference_update(op.outputs)
        if transfer is None or transfer.is_fetch:
            wanted.update(op.inputs)
    return dict(sorted(found.items()))


def decided_step(graph: CapturedGraph, decision: Decision) -> StepGraph:
    """The step as it is to run."""
    step = graph.form(decision.pieces).step
    return step_with_transfers(step, decision.moved) if decision.moved else step


def _transfer(op: OpInfo, name: str, inputs: tuple[int, ...], outputs: tuple[int, ...], transfer: Transfer) -> OpInfo:
    return OpInfo(name, None, inputs, outputs, op.backward, True, False, op.module_path, op.source, transfer=transfer)

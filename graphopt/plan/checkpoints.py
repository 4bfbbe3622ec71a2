"""The chosen checkpoints of a schedule, and what each of them makes run again."""

from __future__ import annotations

from graphopt.graph.step_graph import StepGraph
from graphopt.problem.plan import Checkpoint
from graphopt.problem.problem import Problem
from graphopt.problem.schedule import Schedule, runs_again


def find_checkpoints(step: StepGraph, problem: Problem, schedule: Schedule) -> tuple[Checkpoint, ...]:
    """Values alive at the end of the forward and read by the backward before they are made again.

    A recomputed op is charged to the latest checkpoint among its ancestors in the recomputation. What takes no bytes
    is none.
    """
    charged = _charge(problem, schedule, _first_read(step, problem, schedule))
    kept = kept_values(step, problem, schedule)
    return tuple(_checkpoint(step, problem, value, charged.get(value, [])) for value in kept)


def kept_values(step: StepGraph, problem: Problem, schedule: Schedule) -> list[int]:
    """The values that are checkpoints, in order."""
    return [value for value in sorted(_first_read(step, problem, schedule)) if step.values[value].bytes]


def recomputed_names(step: StepGraph, schedule: Schedule) -> tuple[str, ...]:
    """Names of the ops that run again, once for each time, in order."""
    again = zip(schedule, runs_again(schedule), strict=True)
    return tuple(step.ops[op].name for op, is_again in again if is_again and step.ops[op].transfer is None)


def _first_read(step: StepGraph, problem: Problem, schedule: Schedule) -> set[int]:
    """What the backward reads of the forward before it is made again."""
    boundary = schedule.index(step.boundary)
    in_forward = {value for op in schedule[:boundary] for value in problem.ops[op].outputs}
    return _read_from_forward(problem, schedule[boundary + 1 :], in_forward)


def _read_from_forward(problem: Problem, backward: Schedule, in_forward: set[int]) -> set[int]:
    read: set[int] = set()
    remade: set[int] = set()
    for op in backward:
        read.update(v for v in problem.ops[op].inputs if v in in_forward and v not in remade)
        remade.update(problem.ops[op].outputs)
    return read


def _charge(problem: Problem, schedule: Schedule, checkpoints: set[int]) -> dict[int, list[int]]:
    """For each checkpoint (or -1: the step's inputs alone) the ops whose reruns start from it."""
    root: dict[int, int] = {value: value for value in checkpoints}
    charged: dict[int, list[int]] = {}
    seen: set[int] = set()
    for op in schedule:
        if op in seen:
            source = max((root.get(value, -1) for value in problem.ops[op].inputs), default=-1)
            charged.setdefault(source, []).append(op)
            for value in problem.ops[op].outputs:
                if value not in checkpoints:
                    root[value] = source
        seen.add(op)
    return charged


def _checkpoint(step: StepGraph, problem: Problem, value: int, again: list[int]) -> Checkpoint:
    info = step.values[value]
    producer = problem.producer[value]
    op = step.ops[producer]
    return Checkpoint(
        value=info.name,
        bytes=info.bytes,
        shape=info.shape,
        dtype=info.dtype,
        module_path=op.module_path,
        source=op.source,
        recomputes=tuple(step.ops[i].name for i in again if step.ops[i].transfer is None),
        recompute_seconds=sum(problem.ops[i].seconds for i in again if step.ops[i].transfer is None),
    )

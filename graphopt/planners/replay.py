"""Schedules from a choice of what to keep: all else is computed again just before it is read."""

from __future__ import annotations

from collections.abc import Iterable

from graphopt.problem import Problem


def missing_ops(problem: Problem, wanted: Iterable[int], alive: set[int]) -> list[int]:
    """Ops to run, in order, so that all `wanted` values are there, given those that are `alive`."""
    ops, producer = problem.ops, problem.producer
    needed: set[int] = set()
    stack = [v for v in wanted if producer[v] >= 0 and v not in alive]
    while stack:
        maker = producer[stack.pop()]
        if maker in needed:
            continue
        needed.add(maker)
        stack.extend(v for v in ops[maker].inputs if v not in alive and producer[v] >= 0)
    return sorted(needed)


def pinned_values(problem: Problem) -> set[int]:
    """Values that can be made only once."""
    return {v for op in problem.ops if not op.recomputable for v in op.outputs}


def held_values(problem: Problem) -> set[int]:
    """What no planner frees: values that can be made only once, and the outputs of a training step.

    The caller holds a forward's outputs, and gradients may be taken as they come: freeing either
    would free nothing.
    """
    held = pinned_values(problem)
    if problem.first_backward < len(problem.ops):
        held.update(v for v in problem.outputs if problem.producer[v] >= 0)
    return held


def recompute_once(problem: Problem, end: int, kept: set[int]) -> list[int]:
    """Run the forward up to op `end`, keep `kept`, then compute what is missing once, when it is first read.

    This is what segment checkpointing (Chen et al. 2016) and PyTorch's partitioner both emit; they
    differ in how `kept` is chosen.
    """
    alive = kept | held_values(problem)
    schedule = list(range(end))
    for op_id in range(end, len(problem.ops)):
        op = problem.ops[op_id]
        if not alive.issuperset(op.inputs):
            for again in missing_ops(problem, op.inputs, alive):
                schedule.append(again)
                alive.update(problem.ops[again].outputs)
        schedule.append(op_id)
        alive.update(op.outputs)
    return schedule

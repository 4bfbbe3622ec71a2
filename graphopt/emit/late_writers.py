"""Ops that write a parameter in the backward stand behind the last read of it, wherever a schedule puts that.

A planner knows values, not what is written in place: a recomputation may read a parameter after the
place where the captured graph updates it.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphopt.base.errors import PlanMismatchError
from graphopt.graph.step_graph import StepGraph
from graphopt.problem.schedule import Schedule


def settle(step: StepGraph, schedule: Sequence[int]) -> Schedule:
    """The schedule with each late writer moved, if it must be, right behind the last read of what it writes."""
    due = _last_reads(step, schedule)
    waiting: dict[int, list[int]] = {}
    settled: list[int] = []
    for position, op in enumerate(schedule):
        if due.get(op, -1) > position:
            waiting.setdefault(due[op], []).append(op)
        else:
            settled.append(op)
        settled.extend(waiting.pop(position, ()))
    return tuple(settled)


def check_settled(step: StepGraph, schedule: Sequence[int]) -> None:
    """Raise PlanMismatchError where an op reads what was written for the next step."""
    position = {op: i for i, op in enumerate(schedule)}
    for op, last in _last_reads(step, schedule).items():
        if last > position[op]:
            raise PlanMismatchError(
                f"the schedule lets {step.ops[schedule[last]].name!r} read a parameter after {step.ops[op].name!r} has "
                "updated it"
            )


def _last_reads(step: StepGraph, schedule: Sequence[int]) -> dict[int, int]:
    """Late writer -> the last position at which another op reads what it writes; -1 where none does."""
    written = {value: op for op in step.late_writers for value in step.ops[op].writes}
    last = dict.fromkeys(step.late_writers, -1)
    if written:
        for position, op in enumerate(schedule):
            for value in step.ops[op].inputs:
                if value in written and written[value] != op:
                    last[written[value]] = position
    return last

"""What of a schedule each module takes: time, what is kept of it, what runs again, what is alive at the peak."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from graphopt.graph.step_graph import StepGraph
from graphopt.graph.transfers import fetched_values
from graphopt.plan.checkpoints import kept_values
from graphopt.problem.plan import ModuleShare
from graphopt.problem.problem import Problem
from graphopt.problem.schedule import Schedule, lifetimes, runs_again


@dataclass
class _Sums:
    seconds: float = 0.0
    peak_bytes: int = 0
    kept: int = 0
    kept_bytes: int = 0
    recomputed: int = 0
    again_seconds: float = 0.0
    fetched: int = 0
    fetched_bytes: int = 0


def module_shares(step: StepGraph, problem: Problem, schedule: Schedule, peak_step: int) -> tuple[ModuleShare, ...]:
    """One share a module, in the order in which they first run; all of a graph is in exactly one of them."""
    sums: defaultdict[str, _Sums] = defaultdict(_Sums)
    for op, is_again in zip(schedule, runs_again(schedule), strict=True):
        info, of = step.ops[op], sums[step.ops[op].module_path]
        if not is_again and info.transfer is None:
            of.seconds += problem.ops[op].seconds
        elif info.transfer is None:
            of.recomputed += 1
            of.again_seconds += problem.ops[op].seconds
    for place, values in fetched_values(step, schedule).items():
        of = sums[step.ops[schedule[place]].module_path]
        of.fetched += 1
        of.fetched_bytes += sum(problem.values[value].bytes for value in values)
    for value in kept_values(step, problem, schedule):
        of = sums[step.ops[problem.producer[value]].module_path]
        of.kept += 1
        of.kept_bytes += problem.values[value].bytes
    for value, first, last in lifetimes(problem, schedule):
        if first <= peak_step <= last:
            sums[step.ops[problem.producer[value]].module_path].peak_bytes += problem.values[value].bytes
    at_peak = schedule[peak_step]
    sums[step.ops[at_peak].module_path].peak_bytes += problem.ops[at_peak].workspace_bytes
    return tuple(ModuleShare(path, **vars(each)) for path, each in sums.items())

"""Retention intervals as constraints: Bartan et al., Moccasin (ICML 2023), section 2, for ops of several outputs.

Each run of an op begins a retention of each of its outputs, which ends with the last read of what that run
made. How often an op runs is limited; when, and until when each output stays, is what the solver decides.
First runs stand in the problem's own order; between two of them ops run again in the order of their ids
(the paper's stages), so that a place on the time line is a stage and an op.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from graphopt.planners.study.held import held_values
from graphopt.problem.problem import Problem
from graphopt.problem.schedule import Schedule

#: Whole numbers into which the seconds of a step are cut.
PARTS = 10**7


@dataclass(frozen=True)
class Run:
    """One run of an op: `at` is its place on the time line, `present` None for the first, which must be."""

    op: int
    at: Any
    present: Any = None
    #: The stage before whose first run it runs again.
    stage: Any = None
    #: For each read that may find its value in this run whether it does.
    uses: list[Any] = field(default_factory=list)


def may_run_again(problem: Problem) -> tuple[int, ...]:
    """Ids of the ops that a planner may run a second time."""
    held = held_values(problem)
    return tuple(i for i, op in enumerate(problem.ops) if op.recomputable and held.isdisjoint(op.outputs))


class RetentionModel:
    """The constraints in OR-tools' CP-SAT; `most[op]` is how often an op may run again."""

    def __init__(self, problem: Problem, budget_bytes: int, most: Mapping[int, int]) -> None:
        from ortools.sat.python import cp_model

        self.problem, self.budget_bytes = problem, budget_bytes
        self.again = may_run_again(problem)
        self.model = cp_model.CpModel()
        #: Places of a stage: one for each op that may run again before the step, and the step. One more stage ends it.
        self.slots = len(problem.ops) + 1
        self.end: int = (len(problem.ops) + 1) * self.slots
        self.retained: list[Any] = []
        self.retained_bytes: list[int] = []
        self.runs = {op: [self._first_run(op)] for op in range(len(problem.ops))}
        for op in self.again:
            self.runs[op] += self._later_runs(op, most.get(op, 0))
        self.all_runs = [run for runs in self.runs.values() for run in runs]
        #: For each value the runs that make it, and the place of the last read of what each made.
        self.retentions: dict[int, list[tuple[Run, Any]]] = {}
        self._add_retentions()
        self._add_reads()
        self.model.add_cumulative(self.retained, self.retained_bytes, budget_bytes)
        #: Parts that are run again; rounded down, so that a bound on them is one on the seconds.
        self.cost = sum(self.parts(run.op) * run.present for run in self.all_runs if run.present is not None)
        self.model.minimize(self.cost)

    def parts(self, op: int) -> int:
        """An op's share of the seconds of a step, in parts."""
        return int(PARTS * (self.problem.ops[op].seconds / max(self.problem.seconds, 1e-300)))

    def schedule(self, reruns: Iterable[tuple[int, int]]) -> Schedule:
        """The problem's own order with each op of `reruns`, pairs of stage and op, before first run `stage`."""
        before: dict[int, list[int]] = {}
        for stage, op in sorted(reruns):
            before.setdefault(stage, []).append(op)
        count = len(self.problem.ops)
        return tuple(op for stage in range(count + 1) for op in (*before.get(stage, ()), stage) if op < count)

    def _first_run(self, op: int) -> Run:
        at = op * self.slots + self.slots - 1
        workspace_bytes = self.problem.ops[op].workspace_bytes
        if workspace_bytes:
            self.retained.append(self.model.new_fixed_size_interval_var(at, 1, ""))
            self.retained_bytes.append(workspace_bytes)
        return Run(op, at)

    def _later_runs(self, op: int, most: int) -> list[Run]:
        model, found = self.model, list[Run]()
        for _ in range(most):
            present = model.new_bool_var("")
            stage = model.new_int_var(op + 1, len(self.problem.ops), "")
            run = Run(op, stage * self.slots + op, present, stage)
            if found:
                model.add_implication(present, found[-1].present)
                model.add(found[-1].at < run.at).only_enforce_if(present)
            self._retain(run, run.at + 1, self.problem.ops[op].workspace_bytes)
            found.append(run)
        return found

    def _add_retentions(self) -> None:
        for run in self.all_runs:
            for value in self.problem.ops[run.op].outputs:
                last = self.model.new_int_var(0, self.end, "")
                self.retentions.setdefault(value, []).append((run, last))
                self._retain(run, last + 1, self.problem.values[value].bytes)

    def _retain(self, run: Run, stop: Any, size: int) -> None:
        """From a run to before `stop` its bytes are taken."""
        if not size:
            return
        length = self.model.new_int_var(1, self.end + 1, "")
        if run.present is None:
            self.retained.append(self.model.new_interval_var(run.at, length, stop, ""))
        else:
            self.retained.append(self.model.new_optional_interval_var(run.at, length, stop, run.present, ""))
        self.retained_bytes.append(size)

    def _add_reads(self) -> None:
        for run in self.all_runs:
            for value in self.problem.ops[run.op].inputs:
                if value in self.retentions:
                    self._read(value, run.at, run.present)
        for value in self.problem.outputs:
            if value in self.retentions:
                self._read(value, self.end, None)
        for run in self.all_runs:
            if run.present is not None:
                self.model.add_bool_or([*run.uses, run.present.negated()])

    def _read(self, value: int, at: Any, present: Any) -> None:
        """Whoever reads `value` at `at` finds it in one of its retentions."""
        uses = []
        for run, last in self.retentions[value]:
            if isinstance(at, int) and isinstance(run.at, int) and run.at >= at:
                continue
            use = self.model.new_bool_var("")
            uses.append(use)
            run.uses.append(use)
            self.model.add(last >= at).only_enforce_if(use)
            self.model.add(run.at < at).only_enforce_if(use)
            if run.present is not None:
                self.model.add_implication(use, run.present)
        if present is None:
            self.model.add_exactly_one(uses)
        else:
            self.model.add(sum(uses) == 1).only_enforce_if(present)

"""Retention intervals as constraints: Bartan et al., Moccasin (ICML 2023), section 2, for ops of several outputs.

Each run of an op begins a retention of each of its outputs, which ends with the last read of what that run
made. How often an op runs is limited; when, and until when each output stays, is what the solver decides.
Where the order of the first runs is given, between two of them ops run again in the order of their ids
(the paper's stages), so that a place on the time line is a stage and an op.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from graphopt.planners.retention.window import Window

#: Whole numbers into which the seconds of a step are cut.
PARTS = 10**7


@dataclass(frozen=True)
class Run:
    """One run of an op: `at` is its place on the time line, `present` None for the first, which must be."""

    op: int
    at: Any
    present: Any = None
    #: The stage before whose first run it runs again, where the order is given.
    stage: Any = None
    #: For each read that may find its value in this run whether it does.
    uses: list[Any] = field(default_factory=list)


class RetentionModel:
    """The constraints of one window, in OR-tools' CP-SAT; `most[op]` is how often an op may run again."""

    def __init__(self, window: Window, most: Mapping[int, int], order: str = "fixed") -> None:
        from ortools.sat.python import cp_model

        self.window, self.problem, self.order = window, window.problem, order
        self.model = cp_model.CpModel()
        #: Places of a stage: what lies before, each op that may run again, the step. One stage more ends it all.
        self.slots = len(self.problem.ops) + 2
        again = sum(most.get(op, 0) for op in window.again)
        self.end: int = (len(window.steps) + 1) * self.slots if order == "fixed" else len(window.steps) + again
        self.retained: list[Any] = []
        self.retained_bytes: list[int] = []
        self.stage_of: dict[int, int] = {}
        self.runs: dict[int, list[Run]] = {}
        for stage, op in enumerate(window.steps):
            self.stage_of.setdefault(op, stage)
            self.runs.setdefault(op, []).append(self._fixed_run(stage, op))
        for op in window.again:
            self.runs[op] += self._later_runs(op, most.get(op, 0))
        self.all_runs = [run for runs in self.runs.values() for run in runs]
        #: For each tracked value the runs that make it, and the place of the last read of what each made.
        self.retentions: dict[int, list[tuple[Run, Any]]] = {}
        self._add_retentions()
        self._add_reads()
        self.model.add_cumulative(self.retained, self.retained_bytes, window.budget_bytes)
        if order == "free":
            self._add_order()
        #: Parts that are run again; rounded down, so that a bound on them is one on the seconds.
        self.cost = sum(self.parts(run.op) * run.present for run in self.all_runs if run.present is not None)
        self.model.minimize(self.cost)

    def parts(self, op: int) -> int:
        """An op's share of the seconds of a step, in parts."""
        return int(PARTS * (self.problem.ops[op].seconds / max(self.problem.seconds, 1e-300)))

    def _fixed_run(self, stage: int, op: int) -> Run:
        background = self.window.background[stage]
        if self.order == "free":
            run = Run(op, self.model.new_int_var(0, self.end - 1, ""))
            self._retain(run, run.at + 1, background.during_bytes)
            return run
        at = stage * self.slots
        self._fill(at, 1, background.before_bytes)
        self._fill(at + 1, self.slots - 2, background.between_bytes)
        self._fill(at + self.slots - 1, 1, background.during_bytes)
        return Run(op, at + self.slots - 1)

    def _later_runs(self, op: int, most: int) -> list[Run]:
        model, found = self.model, list[Run]()
        for _ in range(most):
            present = model.new_bool_var("")
            if self.order == "free":
                run = Run(op, model.new_int_var(0, self.end - 1, ""), present)
                model.add(self.runs[op][0].at < run.at).only_enforce_if(present)
            else:
                stage = model.new_int_var(self.stage_of[op] + 1, len(self.window.steps), "")
                run = Run(op, stage * self.slots + 1 + op, present, stage)
            if found:
                model.add_implication(present, found[-1].present)
                model.add(found[-1].at < run.at).only_enforce_if(present)
            self._retain(run, run.at + 1, self.problem.ops[op].workspace_bytes)
            found.append(run)
        return found

    def _add_retentions(self) -> None:
        for run in self.all_runs:
            for value in self.window.tracked.intersection(self.problem.ops[run.op].outputs):
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

    def _fill(self, start: int, length: int, size: int) -> None:
        if size:
            self.retained.append(self.model.new_fixed_size_interval_var(start, length, ""))
            self.retained_bytes.append(size)

    def _add_reads(self) -> None:
        tracked = self.window.tracked
        for run in self.all_runs:
            for value in self.problem.ops[run.op].inputs:
                if value in tracked:
                    self._read(value, run.at, run.present)
        for value in self.problem.outputs:
            if value in tracked:
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

    def _add_order(self) -> None:
        """One run at a time; the forward before the backward; what is pinned in the order it has."""
        model, ops = self.model, self.problem.ops
        steps = []
        for run in self.all_runs:
            if run.present is None:
                steps.append(model.new_fixed_size_interval_var(run.at, 1, ""))
            else:
                steps.append(model.new_optional_fixed_size_interval_var(run.at, 1, run.present, ""))
        model.add_no_overlap(steps)
        turn, pinned = model.new_int_var(0, self.end, ""), -1
        for op in self.window.steps:
            first = self.runs[op][0].at
            model.add(first >= turn) if ops[op].backward else model.add(first < turn)
            if ops[op].pinned or not ops[op].recomputable:
                if pinned >= 0:
                    model.add(self.runs[pinned][0].at < first)
                pinned = op

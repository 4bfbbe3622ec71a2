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

from graphopt.planners.exact_window import Window

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
        self.stage_of = {op: stage for stage, op in enumerate(window.firsts)}
        #: Places of one stage; in the last stage of all nothing runs for the first time.
        self.slots = len(self.problem.ops) + 1
        again = sum(most.get(op, 0) for op in window.again)
        self.end: int = (len(window.firsts) + 1) * self.slots if order == "fixed" else len(window.firsts) + again
        self.retained: list[Any] = []
        self.retained_bytes: list[int] = []
        self.runs: dict[int, list[Run]] = {op: [self._first_run(op)] for op in window.firsts}
        for op in window.again:
            self.runs.setdefault(op, []).extend(self._later_runs(op, most.get(op, 0)))
        self.all_runs = [run for runs in self.runs.values() for run in runs]
        #: For each value the run that makes it, None where it is given, and the place of its last read.
        self.retentions: dict[int, list[tuple[Run | None, Any]]] = {}
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

    def _first_run(self, op: int) -> Run:
        if self.order == "free":
            return Run(op, self.model.new_int_var(0, self.end - 1, ""))
        return Run(op, (self.stage_of[op] + 1) * self.slots - 1)

    def _later_runs(self, op: int, most: int) -> list[Run]:
        model, found = self.model, list[Run]()
        earliest = self.stage_of.get(op, -1) + 1
        for _ in range(most if earliest <= len(self.window.firsts) else 0):
            present = model.new_bool_var("")
            if self.order == "free":
                run = Run(op, model.new_int_var(0, self.end - 1, ""), present)
                model.add(self.runs[op][0].at < run.at).only_enforce_if(present)
            else:
                stage = model.new_int_var(earliest, len(self.window.firsts), "")
                run = Run(op, stage * self.slots + op, present, stage)
            if found:
                model.add_implication(present, found[-1].present)
                model.add(found[-1].at < run.at).only_enforce_if(present)
            found.append(run)
        return found

    def _add_retentions(self) -> None:
        model, size = self.model, self.problem.values
        made: list[tuple[int, Run | None]] = [(value, None) for value in self.window.given]
        made += [(value, run) for run in self.all_runs for value in self.problem.ops[run.op].outputs]
        for value, run in made:
            last = model.new_int_var(-1 if run is None else 0, self.end, "")
            self.retentions.setdefault(value, []).append((run, last))
            self._retain(-1 if run is None else run.at, last + 1, run, size[value].bytes)
        for run in self.all_runs:
            self._retain(run.at, run.at + 1, run, self.problem.ops[run.op].workspace_bytes)

    def _retain(self, start: Any, stop: Any, run: Run | None, size: int) -> None:
        if not size:
            return
        present = run.present if run else None
        length = self.model.new_int_var(0 if run is None else 1, self.end + 2, "")
        if present is None:
            self.retained.append(self.model.new_interval_var(start, length, stop, ""))
        else:
            self.retained.append(self.model.new_optional_interval_var(start, length, stop, present, ""))
        self.retained_bytes.append(size)

    def _add_reads(self) -> None:
        for run in self.all_runs:
            for value in self.problem.ops[run.op].inputs:
                if self.problem.producer[value] >= 0:
                    self._read(value, run.at, run.present)
        for value in self.window.needed:
            self._read(value, self.end, None)
        for run in self.all_runs:
            if run.present is not None:
                self.model.add_bool_or([*run.uses, run.present.negated()])

    def _read(self, value: int, at: Any, present: Any) -> None:
        """Whoever reads `value` at `at` finds it in one of its retentions."""
        uses = []
        for run, last in self.retentions.get(value, ()):
            if run is not None and isinstance(at, int) and isinstance(run.at, int) and run.at >= at:
                continue
            use = self.model.new_bool_var("")
            uses.append(use)
            self.model.add(last >= at).only_enforce_if(use)
            if run is not None:
                self.model.add(run.at < at).only_enforce_if(use)
                run.uses.append(use)
                if run.present is not None:
                    self.model.add_implication(use, run.present)
        if present is None:
            self.model.add_exactly_one(uses)
        else:
            self.model.add(sum(uses) == 1).only_enforce_if(present)

    def _add_order(self) -> None:
        """One run at a time; the forward before the backward; what runs only once in the order it has."""
        model, ops = self.model, self.problem.ops
        steps = []
        for run in self.all_runs:
            if run.present is None:
                steps.append(model.new_fixed_size_interval_var(run.at, 1, ""))
            else:
                steps.append(model.new_optional_fixed_size_interval_var(run.at, 1, run.present, ""))
        model.add_no_overlap(steps)
        turn, once = model.new_int_var(0, self.end, ""), -1
        for op in self.window.firsts:
            first = self.runs[op][0].at
            model.add(first >= turn) if ops[op].backward else model.add(first < turn)
            if not ops[op].recomputable:
                if once >= 0:
                    model.add(self.runs[once][0].at < first)
                once = op

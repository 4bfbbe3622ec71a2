"""A redundant constraint: the choice of what one step finds kept (see `bound_step`), in yes and no.

Its linear relaxation is the whole strength of the lower bound there, which retention intervals have not.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from graphopt.planners.retention.model import RetentionModel, Run


def add_step(model: RetentionModel, step: int, wanted: Iterable[int]) -> None:
    """At the first run of `step` each of the `wanted` values is kept or made again later; what is kept fits."""
    problem = model.problem
    op = problem.ops[step]
    own = {v for v in (*op.inputs, *op.outputs) if problem.producer[v] >= 0}
    taken = op.workspace_bytes + sum(problem.values[v].bytes for v in own)
    cut = _StepCut(model, model.runs[step][0].at, own)
    for value in wanted:
        cut.want(value, None)
    cut.close()
    kept = sum(problem.values[v].bytes * literal for v, literal in cut.kept.items())
    model.model.add(kept <= model.budget_bytes - taken)


class _StepCut:
    """`kept[value]`: it stays over the step; `later[run]`: the run is there, and after the step."""

    def __init__(self, model: RetentionModel, at: Any, own: set[int]) -> None:
        self.model, self.at, self.own = model, at, own
        self.kept: dict[int, Any] = {}
        self.later: dict[int, list[Any]] = {}
        self.open: list[tuple[int, Any]] = []

    def want(self, value: int, reader: Any) -> None:
        """`value` is read after the step; only if `reader` holds, where it is given."""
        if self.model.problem.producer[value] < 0 or value in self.own:
            return
        if value not in self.kept:
            self._add(value)
        ways = [self.kept[value], *self.later[self.model.problem.producer[value]]]
        self.model.model.add_bool_or(ways if reader is None else [*ways, reader.negated()])

    def close(self) -> None:
        """Follow what runs again after the step to what it reads."""
        while self.open:
            op, literal = self.open.pop()
            for value in self.model.problem.ops[op].inputs:
                self.want(value, literal)

    def _add(self, value: int) -> None:
        model = self.model.model
        self.kept[value] = kept = model.new_bool_var("")
        maker = self.model.problem.producer[value]
        runs = [run for run in self.model.runs[maker] if run.present is not None]
        if maker not in self.later:
            self.later[maker] = [self._is_later(run) for run in runs]
            self.open.extend((maker, literal) for literal in self.later[maker])
        later = dict(zip(map(id, runs), self.later[maker], strict=True))
        for run, last in self.model.retentions[value]:
            gone = [kept.negated()]
            if run.present is not None:
                gone += [run.present, later[id(run)].negated()]
            model.add(last <= self.at).only_enforce_if(gone)

    def _is_later(self, run: Run) -> Any:
        model = self.model.model
        literal = model.new_bool_var("")
        model.add_implication(literal, run.present)
        model.add(run.at > self.at).only_enforce_if(literal)
        model.add(run.at < self.at).only_enforce_if([run.present, literal.negated()])
        return literal

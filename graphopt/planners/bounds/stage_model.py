"""What memory at several moments costs together: a linear relaxation of every schedule that fits.

Moments are first runs of ops of which each comes after the one before in every schedule that is meant.
Moment 0 is the beginning, the last one the end. What lies between two moments is a window; variables
from 0 to 1 say

- `kept[v, k]`: at moment `k` value `v` is alive in a copy that was made before;
- `ran[op, a, b]`: the op runs at least once in the window from moment `a` to moment `b`.

**Proof that it is a bound.** Take any schedule with a peak of at most the budget, without runs, besides first
ones, whose outputs nobody reads: without those neither bytes nor seconds rise. Give the variables what is true of it.

- Memory. While the op of moment `k` runs there are its workspace, its outputs and all that is kept, its
  inputs with it: their bytes are at most the budget.
- Reads. What an op reads in a window was made in it, or by the op of the moment that begins it, or before:
  then it is alive at that moment. So `ran[op, a, b] <= kept[v, a] + ran[maker of v, a, b]`. The same holds for
  what is kept at the moment that ends a window, and for outputs at the end.
- First runs. An op runs at least once between the moments that it is known to come after and before.
- Longer windows, from each moment to the end: who runs there runs in one of the shortest windows there.
  For whole numbers that adds nothing. But a fraction of an op in each of many windows would be paid as one
  run, and need each input only in part; over the long window it needs them as a whole.

All rows hold, and seconds are the sum over the shortest windows; so the least sum over fractions too is a bound. A
value that is left out of it (`LEAST_SHARE`) counts as always there and as no bytes, which only helps schedules.
An op's variable is left out where nobody who could run needs what it makes: in no such schedule does it run there.
Stages of a linear programme over all ops are those of Jain et al., Checkmate (MLSys 2020); there are only some
moments here, and the long windows are new.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from graphopt.planners.native.linear_programme import LinearProgramme
from graphopt.problem.problem import Problem

#: Values of which all together are smaller than this share of the budget are left out, the smallest first.
LEAST_SHARE = 0.002


@dataclass(frozen=True)
class Moments:
    """Ops whose first runs come one after the other; for each op the moments that its own first run lies between.

    An op that is itself moment `k` has `k` for both; any other comes after moment `after[op]`, the last such,
    and before moment `before[op]`, the first such.
    """

    ops: tuple[int, ...]
    after: Sequence[int]
    before: Sequence[int]


@dataclass
class _Rows:
    """Rows `sum of coefficients x variables <= limit` of a linear programme, and the costs of its variables."""

    row: list[int] = field(default_factory=list)
    column: list[int] = field(default_factory=list)
    factor: list[float] = field(default_factory=list)
    limits: list[float] = field(default_factory=list)
    costs: list[float] = field(default_factory=list)

    def variable(self, cost: float) -> int:
        self.costs.append(cost)
        return len(self.costs) - 1

    def add(self, columns: Iterable[int], factors: Iterable[float], limit: float) -> None:
        before = len(self.column)
        self.column.extend(columns)
        self.factor.extend(factors)
        self.row.extend([len(self.limits)] * (len(self.column) - before))
        self.limits.append(limit)


_Runs = dict[int, int]
"""For each op that may run in a window its variable."""


class StageModel:
    """The linear programme of a budget and some moments."""

    def __init__(self, problem: Problem, budget_bytes: int, moments: Moments) -> None:
        self.problem, self.budget_bytes, self.moments = problem, max(1, budget_bytes), moments
        self.end = len(moments.ops) + 1
        self.rows = _Rows()
        self.size = self._sizes()
        self.maker = [op if size else -1 for op, size in zip(problem.producer, self.size, strict=True)]
        self.kept: list[dict[int, int]] = [{} for _ in range(self.end + 1)]
        self.short: list[_Runs] = [{} for _ in range(self.end)]
        self.long: list[_Runs] = [{} for _ in range(self.end + 1)]
        self.forced: list[int] = []
        for moment in reversed(range(self.end)):
            self._from_moment(moment)
        self._first_runs()

    def _sizes(self) -> list[int]:
        """Bytes of each value; 0 for those that are left out."""
        sizes = [value.bytes for value in self.problem.values]
        left = LEAST_SHARE * self.budget_bytes
        for value in sorted(range(len(sizes)), key=sizes.__getitem__):
            left -= sizes[value]
            if left < 0:
                break
            sizes[value] = 0
        return sizes

    @property
    def sure_seconds(self) -> float:
        """Of first runs that are no choice: each op's for which it is known between which two moments it stands."""
        moments = self.moments
        sure = (op.seconds for i, op in enumerate(self.problem.ops) if moments.before[i] <= moments.after[i] + 1)
        return math.fsum(sure)

    def programme(self) -> LinearProgramme:
        """All other seconds, with the rows above."""
        rows = self.rows
        least = np.zeros(len(rows.costs))
        least[self.forced] = 1.0
        place = np.array(rows.row, dtype=np.int64), np.array(rows.column, dtype=np.int64)
        return LinearProgramme(np.array(rows.costs), least, *place, np.array(rows.factor), np.array(rows.limits))

    def _from_moment(self, begin: int) -> None:
        """All windows that begin at a moment, then the bytes there; later moments are done."""
        if begin and begin + 1 < self.end:
            self.long[begin] = self._window(begin, self.end, ())
        self.short[begin] = self._window(begin, begin + 1, self.long[begin])
        if begin:
            self._tie_long(begin)
            self._memory(begin)

    def _sure(self, op: int, begin: int, end: int) -> bool:
        after, before = self.moments.after[op], self.moments.before[op]
        return begin < after < end if after == before else begin <= after and before <= end

    def _may(self, op: int, begin: int, end: int) -> bool:
        after, before = self.moments.after[op], self.moments.before[op]
        if self.problem.ops[op].recomputable:
            return after < end
        return after < end and before > begin and after != before

    def _window(self, begin: int, end: int, wanted: Iterable[int]) -> _Runs:
        """The rows of one window, from its last op to its first; `wanted` ops have variables in any case."""
        ops, moments, runs = self.problem.ops, self.moments, _Runs()
        is_short, given = end == begin + 1, set(wanted)
        needs: dict[int, list[int]] = {}  # who needs a value: variables, -1 for what is sure
        for value, variable in self.kept[end].items():
            needs.setdefault(value, []).append(variable)
        for value in self.problem.outputs if end == self.end else ():
            needs.setdefault(value, []).append(-1)
        for op_id in reversed(range(len(ops))):
            op, variable = ops[op_id], -1
            if not self._sure(op_id, begin, end):
                if not self._may(op_id, begin, end):
                    continue
                is_first = is_short and moments.after[op_id] <= begin < moments.before[op_id]
                if not is_first and op_id not in given and all(self.maker[v] < 0 or v not in needs for v in op.outputs):
                    continue
                variable = runs[op_id] = self.rows.variable(op.seconds if is_short else 0.0)
            for value in op.inputs:
                if self.maker[value] >= 0:
                    needs.setdefault(value, []).append(variable)
        for value, readers in needs.items():
            self._reads(value, readers, begin, end, runs)
        return runs

    def _reads(self, value: int, readers: list[int], begin: int, end: int, runs: _Runs) -> None:
        """Each of the readers finds a value kept from the window's beginning, or made in it."""
        maker = self.maker[value]
        if maker < 0 or self._sure(maker, begin, end) or (begin and maker == self.moments.ops[begin - 1]):
            return
        sources = [runs[maker]] if maker in runs else []
        if begin and self.moments.after[maker] < begin:
            sources.append(self._kept(value, begin))
        for reader in (-1,) if -1 in readers else readers:
            mine = [] if reader < 0 else [reader]
            self.rows.add((*mine, *sources), [1.0] * len(mine) + [-1.0] * len(sources), 0.0 if mine else -1.0)

    def _kept(self, value: int, moment: int) -> int:
        if value not in self.kept[moment]:
            self.kept[moment][value] = self.rows.variable(0.0)
        return self.kept[moment][value]

    def _tie_long(self, begin: int) -> None:
        """Who runs from a moment to the end runs in the short window there, or from the next moment on."""
        for op, variable in self.long[begin].items():
            here = [self.short[begin][op]] if op in self.short[begin] else []
            later = [self.long[begin + 1][op]] if op in self.long[begin + 1] else []
            parts = here + (later or [runs[op] for runs in self.short[begin + 1 :] if op in runs])
            self.rows.add((variable, *parts), [1.0] + [-1.0] * len(parts), 0.0)

    def _memory(self, moment: int) -> None:
        """What is there while the op of a moment first runs."""
        op = self.problem.ops[self.moments.ops[moment - 1]]
        self.forced.extend(self._kept(v, moment) for v in op.inputs if self.maker[v] >= 0)
        taken = op.workspace_bytes + sum(self.size[v] for v in op.outputs)
        kept = self.kept[moment]
        # In shares of the budget, or prices and seconds would be numbers of very different sizes.
        self.rows.add(kept.values(), (self.size[v] / self.budget_bytes for v in kept), 1.0 - taken / self.budget_bytes)

    def _first_runs(self) -> None:
        """An op of which it is not known in which short window it first runs does so in one of them."""
        moments = self.moments
        for op in range(len(self.problem.ops)):
            if moments.before[op] > moments.after[op] + 1:
                parts = [self.short[k][op] for k in range(moments.after[op], moments.before[op])]
                self.rows.add(parts, [-1.0] * len(parts), -1.0)

"""The exact planner's choices as a mixed-integer linear problem, for HiGHS; see `solvers.py`.

`again[t, i]`: op `i` runs in stage `t` (which ends with the first run of op `t`); `stays[t, v]`: value `v` is
there from before stage `t`; `wanted[t, v, k]`: in stage `t` it is needed at or after its reader number `k`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from graphopt.planners.retention.model import may_run_again
from graphopt.problem.problem import Problem

Terms = list[tuple[int, float]]


class Linear:
    """Rows and columns, gathered one by one."""

    def __init__(self) -> None:
        self.cost: list[float] = []
        self.integer: list[bool] = []
        self.rows: list[Terms] = []
        self.low: list[float] = []
        self.high: list[float] = []

    def column(self, cost: float = 0.0, integer: bool = True) -> int:
        """A new variable from 0 to 1."""
        self.cost.append(cost)
        self.integer.append(integer)
        return len(self.cost) - 1

    def row(self, terms: Terms, low: float, high: float = np.inf) -> None:
        """`low <= terms <= high`."""
        self.rows.append(terms)
        self.low.append(low)
        self.high.append(high)


class Stages(Linear):
    """The problem: `limit` bytes are 1."""

    def __init__(self, problem: Problem, limit: int) -> None:
        super().__init__()
        self.problem, self.count = problem, len(problem.ops)
        self.size = [value.bytes / limit for value in problem.values]
        self.made = [v for v, maker in enumerate(problem.producer) if maker >= 0]
        free, count = set(may_run_again(problem)), self.count
        share = [op.seconds / problem.seconds for op in problem.ops]
        self.again = {(t, i): self.column(share[i]) for i in free for t in range(i + 1, count + 1)}
        self.stays = {(t, v): self.column() for v in self.made for t in range(problem.producer[v] + 1, count + 1)}
        for i in free:
            self.row([(self.again[t, i], 1.0) for t in range(i + 1, count + 1)], 0.0, 1.0)
        self.wanted: dict[tuple[int, int, int], int] = {}
        for stage in range(count + 1):
            for value in self.made:
                if problem.producer[value] <= stage:
                    self._add_value(stage, value)
            for op in range(min(stage + 1, count)):
                if op == stage or (stage, op) in self.again:
                    self._add_memory(stage, op, limit)

    def there(self, stage: int, value: int) -> Terms:
        """What makes a value available in a stage."""
        maker = self.problem.producer[value]
        return [(x, 1.0) for x in (self.stays.get((stage, value)), self.again.get((stage, maker))) if x is not None]

    def _add_value(self, stage: int, value: int) -> None:
        problem, there = self.problem, self.there(stage, value)
        readers = problem.readers[value]
        fixed = problem.producer[value] == stage
        later = self.stays.get((stage + 1, value))
        if not fixed and later is not None:
            self.row([*there, (later, -1.0)], 0.0)
        if stage == self.count and value in problem.outputs:
            self.row(there, 1.0)
        for number in range(len(readers), -1, -1):
            need = self.wanted[stage, value, number] = self.column(integer=False)
            if number == len(readers):
                if later is not None:
                    self.row([(need, 1.0), (later, -1.0)], 0.0)
                elif value in problem.outputs:
                    self.row([(need, 1.0)], 1.0)
                continue
            self.row([(need, 1.0), (self.wanted[stage, value, number + 1], -1.0)], 0.0)
            reader = readers[number]
            if reader == stage:
                self.row([(need, 1.0)], 1.0)
                self.row(there, 1.0)
            elif (stage, reader) in self.again:
                self.row([(need, 1.0), (self.again[stage, reader], -1.0)], 0.0)
                self.row([*there, (self.again[stage, reader], -1.0)], 0.0)

    def _add_memory(self, stage: int, op: int, limit: int) -> None:
        problem = self.problem
        taken = problem.ops[op].workspace_bytes / limit + sum(self.size[v] for v in problem.ops[op].outputs)
        terms: Terms = []
        for value in self.made:
            maker = problem.producer[value]
            if op < maker < stage:
                terms.append((self.stays[stage, value], self.size[value]))
            elif maker < op:
                number = sum(reader < op for reader in problem.readers[value])
                terms.append((self.wanted[stage, value, number], self.size[value]))
        if op == stage:
            self.row(terms, -np.inf, 1.0 - taken)
        else:
            self.row([*terms, (self.again[stage, op], taken)], -np.inf, 1.0)


def solve_with_highs(problem: Problem, budget_bytes: int, limit_seconds: float) -> dict[str, Any]:
    """Overhead, its bound, and whether they are the same; one thread, from nothing."""
    import highspy

    stages = Stages(problem, budget_bytes)
    data = highspy.HighsLp()
    data.num_col_, data.num_row_ = len(stages.cost), len(stages.rows)
    data.col_cost_ = np.array(stages.cost)
    data.col_lower_, data.col_upper_ = np.zeros(len(stages.cost)), np.ones(len(stages.cost))
    data.row_lower_, data.row_upper_ = np.array(stages.low), np.array(stages.high)
    data.integrality_ = [
        highspy.HighsVarType.kInteger if i else highspy.HighsVarType.kContinuous for i in stages.integer
    ]
    data.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    data.a_matrix_.start_ = np.cumsum([0, *map(len, stages.rows)])
    data.a_matrix_.index_ = np.array([column for row in stages.rows for column, _ in row])
    data.a_matrix_.value_ = np.array([factor for row in stages.rows for _, factor in row])
    solver = highspy.Highs()
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("threads", 1)
    solver.setOptionValue("time_limit", limit_seconds)
    solver.setOptionValue("mip_rel_gap", 1e-6)
    solver.passModel(data)
    solver.run()
    info = solver.getInfo()
    found = info.primal_solution_status == 2
    return {
        "overhead": info.objective_function_value if found else None,
        "bound": max(0.0, info.mip_dual_bound) if np.isfinite(info.mip_dual_bound) else 0.0,
        "proven": solver.getModelStatus() == highspy.HighsModelStatus.kOptimal,
    }

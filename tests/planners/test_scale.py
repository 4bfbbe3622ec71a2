"""Planning in little memory and in time, whatever the graph looks like."""

from __future__ import annotations

import multiprocessing

import pytest

from benchmarks.planning.families import FAMILIES
from benchmarks.planning.plan_time import measure
from graphopt.planners.native.build import library
from graphopt.problem.problem import check_problem

#: Ops of each: `layered` at a size at which another order is planned too, the others at the least effort there is.
OPS = {"transformer": 21_000, "residual": 21_000, "chain": 21_000, "u_net": 21_000, "layered": 10_000}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("ops", [100, 1000])
def test_families_are_problems_of_about_so_many_ops(name: str, ops: int) -> None:
    problem = check_problem(FAMILIES[name](ops))
    assert len(problem.ops) == pytest.approx(ops, rel=0.4 if ops == 100 else 0.05)
    assert problem == FAMILIES[name](ops)
    assert 0 < problem.first_backward < len(problem.ops)


@pytest.mark.slow
@pytest.mark.skipif(library() is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("name", OPS)
def test_memory_and_time_at_scale(name: str) -> None:
    """In a process of its own. Measured 112 to 163 MiB, of which 40 are Python's; some were 370 to 9,800 once."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        row = pool.apply(measure, (name, OPS[name]))
    assert float(str(row["peak_rss_mib"])) < 250
    assert float(str(row["plan_seconds"])) + float(str(row["bound_seconds"])) < 60

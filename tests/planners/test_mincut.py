"""Cuts are optimal, and so are the schedules that follow from them where only one step counts."""

import random
from itertools import chain, combinations

import numpy as np
import pytest

from graphopt.planners.mincut import mincut_curve, sweep
from graphopt.planners.moves.cuts import Cutter
from graphopt.planners.schedules.flow import Network
from graphopt.planners.schedules.recompute import missing_ops
from graphopt.planners.study.study import Study
from graphopt.problem.problem import Op, Problem, Value, check_problem
from tests.support.problems import assert_good, random_problem


def cut_value(edges: list[tuple[int, int, int]], source_side: set[int]) -> int:
    return sum(c for a, b, c in edges if a in source_side and b not in source_side)


@pytest.mark.parametrize("seed", range(30))
def test_cut_is_the_least_of_all_also_after_capacities_change(seed: int) -> None:
    rng = random.Random(seed)
    edges = [(rng.randrange(7), rng.randrange(7), rng.randrange(9)) for _ in range(14)]
    network = Network(Study(random_problem(seed)), 7)
    numbers = [network.edge(*edge) for edge in edges]
    for _ in range(3):
        side = {node for node, there in enumerate(network.source_side()) if there}
        others = chain.from_iterable(combinations(range(2, 7), k) for k in range(6))
        assert cut_value(edges, side) == min(cut_value(edges, {0, *extra}) for extra in others)
        edges = [(a, b, c + rng.randrange(-c, 9)) for a, b, c in edges]
        network.price(np.array(numbers), np.array([capacity for *_, capacity in edges]))


def cost(cutter: Cutter, kept: set[int], price: float) -> float:
    """What keeping these values costs at a price per byte across the split."""
    problem, split = cutter.problem, cutter.split
    late = [v for op in problem.ops[split:] for v in op.inputs if problem.producer[v] < split]
    late += [v for v in problem.outputs if problem.producer[v] < split]
    again = missing_ops(cutter.study, late, kept | cutter.held)
    if not all(problem.ops[i].recomputable for i in again):
        return float("inf")
    return sum(problem.ops[i].seconds for i in again) + price * sum(problem.values[v].bytes for v in kept)


@pytest.mark.parametrize("seed", range(60))
def test_what_is_kept_is_the_optimum_at_its_price(seed: int) -> None:
    problem = random_problem(seed, 14, training=True)
    split = problem.first_backward
    cutter = Cutter(Study(problem), split)
    free = [v for v, maker in enumerate(problem.producer) if 0 <= maker < split and v not in cutter.held]
    # A late value of the op just before the split has no step between its birth and the split.
    shape = np.zeros(len(problem.ops))
    shape[split] = 1.0
    for price in (0.01, 0.1, 0.5, 2.0):
        kept = cutter.cut(shape * price / problem.seconds)
        best = min(cost(cutter, set(k), price) for n in range(len(free) + 1) for k in combinations(free, n))
        assert cost(cutter, set(kept), price) == pytest.approx(best)


def pairs(length: int) -> Problem:
    """A chain and its backward; of each pair of values one is large and cheap, the other small and dear."""
    forward = [Op(f"f{i}", 0.1 if i % 2 else 5.0, 0, (i - 1,) if i else (), (i,)) for i in range(length)]
    backward = [
        Op(f"b{i}", 1.0, 0, tuple({i, 2 * length - 2 - i}), (2 * length - 1 - i,), backward=True)
        for i in range(length - 1, -1, -1)
    ]
    values = tuple(Value(100 + i if i % 2 else 10) for i in range(length)) + (Value(1),) * length
    return check_problem(Problem(values, (*forward, *backward), (2 * length - 1,)))


def test_less_is_kept_as_prices_rise() -> None:
    problem = pairs(20)
    cutter = Cutter(Study(problem), problem.first_backward)
    shape = np.zeros(len(problem.ops))
    shape[cutter.split] = 1.0
    sizes = [sum(problem.values[v].bytes for v in kept) for kept in sweep(cutter, shape)]
    assert len(sizes) > 2
    assert sizes == sorted(sizes, reverse=True)


def test_cheap_and_large_values_are_computed_again() -> None:
    problem = pairs(20)
    curve = mincut_curve(Study(problem))
    cheap = [p for p in curve if p.seconds <= problem.seconds + 1.0 + 1e-9]
    assert min(p.peak_bytes for p in cheap) <= 10 * 10 + 2 * 120 + 10
    for found in curve:
        assert_good(problem, found.schedule, found.peak_bytes)

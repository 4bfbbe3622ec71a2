"""Regions: equal blocks are of one kind, and the chain chooses among what they can keep."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.planners.chain import chain_curve
from graphopt.planners.chains.programme import Chain
from graphopt.planners.chains.region_options import options_of
from graphopt.planners.chains.regions import Regions, regions_of
from graphopt.planners.sqrt_n import sqrt_n_curve
from graphopt.planners.study.study import Study
from graphopt.problem.problem import Op, Problem, Value, check_problem
from graphopt.problem.schedule import simulate
from tests.support.problems import assert_good, problems


def blocks(count: int, *, skip: bool = False, jitter: float = 0.0) -> Problem:
    """Blocks of narrow -> wide -> wide -> narrow whose wide values the backward reads; with `skip`, the first
    block's output is read by the last one as well."""
    values: list[Value] = []
    forward: list[Op] = []
    tape: list[tuple[int, int, int, int]] = []

    def value(size: int) -> int:
        values.append(Value(size))
        return len(values) - 1

    x = value(10)
    forward.append(Op("start", 1.0, 0, (), (x,)))
    first = -1
    for block in range(count):
        dear, cheap, out = value(100), value(100), value(10)
        late = 1.0 + jitter * block
        forward.append(Op(f"dear{block}", 10.0 * late, 0, (x,), (dear,)))
        forward.append(Op(f"cheap{block}", 1.0 * late, 0, (dear,), (cheap,)))
        ends = skip and block == count - 1 and first >= 0
        forward.append(Op(f"end{block}", 1.0 * late, 0, (cheap, first) if ends else (cheap,), (out,)))
        tape.append((x, dear, cheap, out))
        x, first = out, out if first < 0 else first
    g = value(10)
    backward = [Op("loss", 1.0, 0, (x,), (g,), backward=True)]
    for entry, dear, cheap, _ in reversed(tape):
        wide, back = value(100), value(10)
        backward.append(Op("b1", 1.0, 0, (g, cheap), (wide,), backward=True))
        backward.append(Op("b2", 1.0, 0, (wide, dear, entry), (back,), backward=True))
        g = back
    return check_problem(Problem(tuple(values), (*forward, *backward), (g,)))


def regions(problem: Problem) -> Regions:
    found = regions_of(Study(problem), 40)
    assert found is not None
    return found


def test_equal_blocks_are_of_one_kind_whatever_their_times() -> None:
    parts = regions(blocks(12, jitter=0.01)).parts
    assert len(parts) >= 12
    assert len({part.kind for part in parts}) <= 4


def test_every_op_belongs_to_one_region() -> None:
    problem = blocks(9, skip=True)
    ops = [op_id for part in regions(problem).parts for op_id in part.ops if op_id >= 0]
    assert sorted(ops) == list(range(len(problem.ops)))
    for part in regions(problem).parts:
        check_problem(part.local)


def test_a_skip_crosses_every_border_up_to_its_last_reader() -> None:
    problem = blocks(9, skip=True)
    (skip,) = next(op.outputs for op in problem.ops if op.name == "end0")
    holding = [skip in border for border in regions(problem).border]
    assert sum(holding) >= 7
    lowest = chain_curve(Study(problem))[0]
    assert_good(problem, lowest.schedule, lowest.peak_bytes)


def test_options_keep_a_part_of_a_block() -> None:
    """Of two wide values one is cheap to have again: it goes first, and the dear one stays."""
    problem = blocks(8)
    kept = {option.kept_bytes for option in options_of(Study(problem), regions(problem))[4]}
    assert any(100 <= size < 200 for size in kept)
    peak = simulate(problem, range(len(problem.ops))).peak_bytes
    less = [p for p in chain_curve(Study(problem)) if p.peak_bytes <= 0.7 * peak][-1]
    # All or nothing would take three whole blocks again, of twelve seconds each.
    assert less.seconds - problem.seconds < 2 * 12


@pytest.mark.parametrize("room", [1.0, 0.0])
def test_the_choices_of_the_programme_take_the_seconds_that_it_says(room: float) -> None:
    problem = blocks(7, skip=True)
    found = regions(problem)
    chain = Chain(problem, found, options_of(Study(problem), found), room)

    def seconds(i: int, j: int, slots: int) -> float:
        if slots < 0:
            return math.inf
        option, after = chain.choice(i, j, slots)
        if option < 0:
            below = seconds(after, j, slots - int(chain.more[i, after]))
            return float(seconds(i, after - 1, slots) + below + chain.passed[after] - chain.passed[i])
        rest = slots - int(chain.kept[i][option])
        own = float(chain.extra[i][option])
        return own if i == j else own + seconds(i + 1, j, rest - int(chain.more[i, i + 1]))

    last = chain.count - 1
    least = chain.seconds[0, last, chain.PAD :]
    feasible = np.flatnonzero(np.isfinite(least))
    assert len(set(least[feasible].tolist())) > 3
    for slots in feasible[::7].tolist():
        assert seconds(0, last, slots) == pytest.approx(least[slots])


@pytest.mark.parametrize("count", [6, 24])
def test_the_chain_is_no_worse_than_segments_at_their_lowest(count: int) -> None:
    problem = blocks(count)
    assert chain_curve(Study(problem))[0].peak_bytes <= sqrt_n_curve(Study(problem))[0].peak_bytes


@settings(max_examples=60, deadline=None)
@given(problem=problems, most=st.integers(1, 8))
def test_regions_of_any_problem_are_problems(problem: Problem, most: int) -> None:
    study = Study(problem)
    found = regions_of(study, most)
    if found is not None:
        ops = [op_id for part in found.parts for op_id in part.ops if op_id >= 0]
        assert sorted(ops) == list(range(len(problem.ops)))
        for part, options in zip(found.parts, options_of(study, found), strict=True):
            check_problem(part.local)
            assert options[0].seconds == pytest.approx(0.0)

"""One budget for a chain: the programme is the best of all choices, and what it promises is what a replay shows."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.base.errors import InfeasibleError
from graphopt.plan.block_points import BlockPoint
from graphopt.plan.chain_shares import Beside, Curves, chain_peak_bytes, seconds_of, share_chain, smallest

SIZES = st.integers(0, 40)


@st.composite
def points(draw: st.DrawFn) -> BlockPoint:
    kept = draw(SIZES)
    return BlockPoint(kept + draw(SIZES), kept, kept + draw(SIZES), float(draw(st.integers(1, 9))), (draw(SIZES),))


@st.composite
def chains(draw: st.DrawFn) -> tuple[Curves, Beside]:
    curves = draw(st.lists(st.lists(points(), min_size=1, max_size=4), min_size=1, max_size=4))

    def sizes(count: int) -> tuple[int, ...]:
        return tuple(draw(st.lists(SIZES, min_size=count, max_size=count)))

    return curves, Beside(sizes(len(curves)), sizes(len(curves)), sizes(len(curves) + 1))


def replayed(beside: Beside, chosen: list[BlockPoint]) -> int:
    """The peak of a chain, moment by moment."""
    kept: list[int] = []
    live = [beside.between[0]]
    for place, point in enumerate(chosen):
        live.append(sum(kept) + beside.forward[place] + point.forward_bytes)
        kept.append(point.kept_bytes)
        live.append(sum(kept) + beside.between[place + 1])
    for place in range(len(chosen) - 1, -1, -1):
        kept.pop()
        live.append(sum(kept) + beside.backward[place] + chosen[place].backward_bytes)
        live.append(sum(kept) + beside.between[place])
    return max(live)


@settings(max_examples=200, deadline=None)
@given(chains(), st.integers(1, 250))
def test_the_choice_is_the_fastest_of_all_that_fit(chain: tuple[Curves, Beside], budget: int) -> None:
    curves, beside = chain
    every = [list(each) for each in product(*curves)]
    fitting = [each for each in every if replayed(beside, each) <= budget]
    if not fitting:
        with pytest.raises(InfeasibleError) as error:
            share_chain(curves, beside, budget)
        assert error.value.minimum_bytes == min(replayed(beside, each) for each in every)
        return
    chosen = share_chain(curves, beside, budget)
    assert replayed(beside, chosen) == chain_peak_bytes(beside, chosen) <= budget
    assert seconds_of(chosen) == min(map(seconds_of, fitting))


@settings(max_examples=50, deadline=None)
@given(chains())
def test_the_smallest_is_the_smallest(chain: tuple[Curves, Beside]) -> None:
    curves, beside = chain
    assert chain_peak_bytes(beside, smallest(curves, beside)) == min(
        replayed(beside, list(each)) for each in product(*curves)
    )


def test_sizes_of_real_models_lose_little_to_grains() -> None:
    """48 blocks that keep odd numbers of bytes, at every budget from the least: more budget is never slower."""
    curve = [BlockPoint(1_000_003 + k, k, 3_000_001, 2.0 - k / 4_000_000, (k,)) for k in range(0, 4_000_001, 250_007)]
    curves = [curve] * 48
    beside = Beside((999_999,) * 48, (1_500_001,) * 48, (1_111_111,) * 49)
    before = float("inf")
    for budget in range(5_000_000, 200_000_000, 13_000_007):
        chosen = share_chain(curves, beside, budget)
        assert budget * 0.97 - 250_007 <= chain_peak_bytes(beside, chosen) <= budget or seconds_of(chosen) == 48.0
        assert seconds_of(chosen) <= before
        before = seconds_of(chosen)


def test_blocks_that_are_alike_may_all_do_the_same() -> None:
    """Where rounding up to grains leaves no room for it, what fits to the byte is found all the same."""
    curve = [BlockPoint(10_000_019, 1_000_003, 20_000_003, 3.0, (0,)), BlockPoint(10**8, 10**8, 10**8, 1.0, (1,))]
    curves = [curve] * 100
    beside = Beside((0,) * 100, (0,) * 100, (0,) * 101)
    least = chain_peak_bytes(beside, [curve[0]] * 100)
    assert share_chain(curves, beside, least) == [curve[0]] * 100
    with pytest.raises(InfeasibleError) as error:
        share_chain(curves, beside, least - 1)
    assert least <= error.value.minimum_bytes <= least * 1.002

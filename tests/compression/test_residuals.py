"""State that ranks keep: how it begins, and what becomes of it with another number of ranks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.compression.methods import DGC, Compression, EightBit, HalfCast, PowerSGD, TopK
from graphopt.compression.residuals import State, initial_state, reshard


def _states(world: int, seed: int) -> list[State]:
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(7, 2, generator=generator)
    return [
        {
            "a": {
                "residual": torch.randn(5, 3, generator=generator),
                "momentum": torch.randn(5, 3, generator=generator),
            },
            "b": {"residual": torch.randn(4, generator=generator) * 1e3, "query": query.clone()},
        }
        for _ in range(world)
    ]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 9))
def test_the_sum_over_ranks_is_kept(before: int, after: int, seed: int) -> None:
    """To half an ulp of each rank's share."""
    old = _states(before, seed)
    new = reshard(old, after)
    assert len(new) == after
    for name, key in (("a", "residual"), ("a", "momentum"), ("b", "residual")):
        was = torch.stack([state[name][key].double() for state in old]).sum(0)
        now = torch.stack([state[name][key].double() for state in new]).sum(0)
        assert ((now - was).abs() <= 2**-24 * was.abs()).all() or before == after
    assert all(torch.equal(state["b"]["query"], old[0]["b"]["query"]) for state in new)


def test_as_many_ranks_keep_their_own() -> None:
    old = _states(3, 0)
    new = reshard(old, 3)
    assert all(torch.equal(a["a"]["residual"], b["a"]["residual"]) for a, b in zip(old, new, strict=True))


def test_new_ranks_share_no_memory() -> None:
    first, second = reshard(_states(1, 0), 2)
    first["b"]["query"].zero_()
    assert second["b"]["query"].any()


@pytest.mark.parametrize("method", (TopK(), EightBit(), DGC(), PowerSGD(2)), ids=str)
def test_state_begins_at_zero_in_the_layout_of_its_parameter(method: Compression) -> None:
    parameter = torch.nn.Parameter(torch.randn(40, 8, 3, 3).half().contiguous(memory_format=torch.channels_last))
    state = initial_state(method, "a", parameter)
    for key, tensor in state.items():
        assert tensor.dtype == torch.float32 and not tensor.requires_grad
        if key != "query":
            assert tensor.stride() == parameter.stride() and not tensor.any()


def test_queries_differ_by_name_and_seed_only() -> None:
    parameter = torch.randn(64, 64)

    def query(name: str, seed: int) -> torch.Tensor:
        torch.manual_seed(torch.initial_seed() + 1)  # which must not matter
        return initial_state(PowerSGD(2, seed=seed), name, parameter)["query"]

    assert torch.equal(query("a", 0), query("a", 0))
    assert not torch.equal(query("a", 0), query("b", 0))
    assert not torch.equal(query("a", 0), query("a", 1))


def test_what_keeps_nothing_has_no_state() -> None:
    assert initial_state(HalfCast(), "a", torch.randn(64, 64)) == {}
    assert initial_state(TopK(), "a", torch.randn(64)) == {}

"""State that ranks keep: how it begins, and what becomes of it with another number of ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.base.errors import UsageError
from graphopt.compression.methods import DGC, Compression, EightBit, HalfCast, PowerSGD, TopK
from graphopt.compression.residuals import KeptState, initial_state, own_state, reshard


def _states(world: int, seed: int) -> list[KeptState]:
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


def _saved(**state: dict[str, torch.Tensor]) -> dict[str, object]:
    return {"rank": 0, "world": 1, "state": state}


SHAPES = {"large": (40, 50), "small": (3,)}


@pytest.mark.parametrize(
    ("saved", "what"),
    [
        ([], "is empty"),
        (_saved(other={}), "'other', which the model does not train"),
        (_saved(large={"residual": torch.zeros(50, 40)}), "has the shapes {'residual': (50, 40)}, the model needs"),
        (_saved(large={"momentum": torch.zeros(40, 50)}), "has the shapes {'momentum': (40, 50)}, the model needs"),
        (_saved(small={"residual": torch.zeros(3)}), "of 'small' has the shapes"),
        ([_saved(large={"residual": torch.zeros(1)})], "of 'large' has the shapes"),
        ([{**_saved(), "world": 2}], "of 2 ranks was saved, but what is given is of ranks [0]"),
        ({**_saved(large={"residual": torch.zeros(40, 50)}), "world": 2}, "of 2 ranks, and now there are 1"),
    ],
)
def test_what_is_not_this_models_is_refused(saved: Any, what: str) -> None:
    with pytest.raises(UsageError) as error:
        own_state(saved, None, SHAPES, lambda _: (TopK(),))
    assert what in str(error.value)


def test_what_one_of_several_methods_keeps_is_taken() -> None:
    state = {"large": {"residual": torch.ones(40, 50)}, "small": {}}
    assert own_state(_saved(**state), None, SHAPES, lambda _: (DGC(), TopK())) == state


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

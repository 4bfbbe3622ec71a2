"""Cutting a batch into micro-batches."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graphopt.base.errors import UsageError
from graphopt.step.micro_batches.window import as_shares, cut, rows_of, weight_of


@given(rows=st.integers(1, 20), size=st.integers(1, 25))
def test_the_pieces_are_the_batch(rows: int, size: int) -> None:
    x, y = torch.arange(rows * 3).reshape(rows, 3), torch.arange(rows)
    pieces = cut((x, {"y": y}), {"z": [y, "word"]}, size, None)
    assert torch.equal(torch.cat([piece.args[0] for piece in pieces]), x)
    assert torch.equal(torch.cat([piece.args[1]["y"] for piece in pieces]), y)
    assert torch.equal(torch.cat([piece.kwargs["z"][0] for piece in pieces]), y)
    assert all(piece.kwargs["z"][1] == "word" for piece in pieces)
    assert [len(piece.args[0]) for piece in pieces[:-1]] == [size] * (len(pieces) - 1)
    assert [piece.weight for piece in pieces] == [len(piece.args[0]) for piece in pieces]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8))
def test_weights_are_shares_of_what_is_there(counts: list[int]) -> None:
    x = torch.tensor(counts)
    whole = cut((x,), {}, 1, lambda part: part.item())
    assert weight_of(whole) == sum(counts)
    pieces = as_shares(whole, weight_of(whole))
    assert [int(piece.args[0]) for piece in pieces] == [count for count in counts if count]
    assert sum(piece.weight for piece in pieces) == pytest.approx(1.0 if any(counts) else 0.0)
    for piece in pieces:
        assert piece.weight == pytest.approx(int(piece.args[0]) / sum(counts))


def test_pieces_are_views() -> None:
    x = torch.randn(6, 2)
    assert [piece.args[0].data_ptr() for piece in cut((x,), {}, 4, None)] == [x.data_ptr(), x[4:].data_ptr()]


def test_a_batch_that_fits_is_handed_on_as_it_is() -> None:
    x = torch.randn(4, 2)
    (piece,) = cut((x,), {}, 4, None)
    assert piece.args[0] is x and piece.weight == 4


def test_single_numbers_and_other_first_dimensions_are_not_cut() -> None:
    x, scalar, table = torch.randn(4, 2), torch.tensor(3.0), torch.randn(5, 2)
    for piece in cut((x, scalar, table), {}, 2, None):
        assert piece.args[1] is scalar and piece.args[2] is table


@pytest.mark.parametrize(("batch", "rows"), [((torch.zeros(3, 1),), 3), ((torch.tensor(1.0), {"x": torch.ones(2)}), 2)])
def test_rows_are_those_of_the_first_tensor_that_has_some(batch: tuple[object, ...], rows: int) -> None:
    assert rows_of(batch, {}) == rows


def test_no_tensor_no_rows() -> None:
    with pytest.raises(UsageError, match="no tensor with a first dimension"):
        rows_of((1, "word", torch.tensor(2.0)), {})


def test_tokens_are_targets_that_are_not_ignored() -> None:
    ids, labels = torch.zeros(2, 4), torch.tensor([[1, 2, -100, 3], [-100, -100, -100, 0]])
    assert [p.weight for p in cut((ids, labels), {}, 1, "tokens")] == [3, 1]
    assert [p.weight for p in cut((ids,), {"labels": labels}, 1, "tokens")] == [3, 1]


@pytest.mark.parametrize("target", [torch.zeros(2, 3), "word"])
def test_tokens_need_integer_targets(target: object) -> None:
    with pytest.raises(UsageError, match="integer targets"):
        cut((torch.zeros(2, 3), target), {}, 1, "tokens")


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_weight_is_a_finite_number(weight: float) -> None:
    with pytest.raises(UsageError, match="cannot weigh"):
        cut((torch.zeros(2),), {}, 1, lambda _: weight)


def test_weights_by_another_name_are_refused() -> None:
    with pytest.raises(UsageError, match="'rows', 'tokens' or a function"):
        cut((torch.zeros(2),), {}, 1, "words")

"""Packing and padding as ops of known sizes: torch's own results and gradients, in the same layout."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from graphopt.kernels.recurrent.packing import (
    batch_sizes,
    host_integers,
    pack_rows,
    pad_rows,
    sequence_lengths,
    some_batch_sizes,
)


def case(seed: int) -> tuple[Tensor, Tensor, bool]:
    """A padded batch, lengths in falling order, and whether the batch comes first."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    steps, batch, batch_first = draw.randint(1, 7), draw.randint(1, 6), draw.random() < 0.5
    lengths = torch.tensor(sorted((draw.randint(1, steps) for _ in range(batch)), reverse=True))
    shape = (*((batch, steps) if batch_first else (steps, batch)), *draw.choice([(3,), (2, 3), ()]))
    padded = torch.randn(shape)
    if draw.random() < 0.3 and padded.dim() > 2:
        padded = padded.transpose(0, -1).contiguous().transpose(0, -1)
    return padded.requires_grad_(), lengths, batch_first


def check(found: Tensor, expected: Tensor) -> None:
    assert torch.equal(found, expected) and found.stride() == expected.stride()


@pytest.mark.parametrize("seed", range(30))
def test_it_packs_as_torch_does(seed: int) -> None:
    padded, lengths, batch_first = case(seed)
    expected = pack_padded_sequence(padded, lengths, batch_first)
    sizes = batch_sizes(lengths, int(lengths[0]))
    assert torch.equal(sizes, expected.batch_sizes)
    assert torch.equal(sequence_lengths(sizes, len(lengths)), lengths)
    found = pack_rows(padded, sizes, int(lengths.sum()), batch_first)
    check(found, expected.data)
    gradient = torch.randn_like(found)
    check(*(torch.autograd.grad(each, padded, gradient)[0] for each in (found, expected.data)))


@pytest.mark.parametrize("seed", range(30))
def test_it_pads_as_torch_does(seed: int) -> None:
    padded, lengths, batch_first = case(seed)
    sizes = batch_sizes(lengths, int(lengths[0]))
    data = torch.randn(int(lengths.sum()), *padded.shape[2:], requires_grad=True)
    total = int(lengths[0]) + seed % 3
    expected, _ = pad_packed_sequence(PackedSequence(data, sizes), batch_first, 0.25, total)
    found = pad_rows(data, sizes, len(lengths), total, batch_first, 0.25)
    check(found, expected)
    gradient = torch.randn_like(found)
    check(*(torch.autograd.grad(each, data, gradient)[0] for each in (found, expected)))


def test_integers_are_packed_and_padded_too() -> None:
    sizes = torch.tensor([2, 1])
    assert pack_rows(torch.tensor([[1, 2], [3, 0]]), sizes, 3, True).tolist() == [1, 3, 2]
    assert pad_rows(torch.tensor([1, 3, 2]), sizes, 2, 3, True, 7.0).tolist() == [[1, 2, 7], [3, 7, 7]]


@pytest.mark.parametrize("lengths", [[2, 3], [2, 0], [2, -1]])
def test_lengths_that_torch_refuses_are_refused(lengths: list[int]) -> None:
    with pytest.raises(RuntimeError) as expected:
        pack_padded_sequence(torch.ones(3, 2, 1), torch.tensor(lengths))
    with pytest.raises(RuntimeError) as found:
        batch_sizes(torch.tensor(lengths), max(lengths))
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize("seed", range(50))
def test_some_batch_sizes_go_with_the_sizes(seed: int) -> None:
    draw = random.Random(seed)
    batch, steps = draw.randint(1, 6), draw.randint(1, 6)
    rows = draw.randint(batch + steps - 1, batch * steps)
    sizes = some_batch_sizes(rows, steps, batch)
    assert (sum(sizes), sizes[0], len(sizes)) == (rows, batch, steps)
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] > 0


@pytest.mark.parametrize("batch_first", [False, True])
def test_what_is_traced_is_what_is_run(batch_first: bool) -> None:
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    sizes = torch.tensor([3, 2, 2, 1])
    for op, arguments in (
        (pack_rows, (torch.randn(*((3, 5) if batch_first else (5, 3)), 2, requires_grad=True), sizes, 8, batch_first)),
        (pad_rows, (torch.randn(8, 2, requires_grad=True), sizes, 3, 6, batch_first, 0.5)),
        (batch_sizes, (torch.tensor([4, 3, 1]), 4)),
        (sequence_lengths, (sizes, 3)),
        (host_integers, ([3, 4],)),
    ):
        torch.library.opcheck(op, arguments, test_utils=tests)

"""Which tensors share one message when ranks give each other their rows, and how large the largest such message is."""

from __future__ import annotations

import torch

from graphopt.kernels.sharding.message import packed_bytes, together
from graphopt.kernels.sharding.transport import ALONE_BYTES


def test_large_tensors_travel_alone_and_small_ones_until_they_are_as_large() -> None:
    large, half = torch.empty(ALONE_BYTES // 4), torch.empty(ALONE_BYTES // 8)
    small, other = torch.empty(7), torch.empty(5, dtype=torch.bfloat16)
    found = together([half, large, other, half, small, half, other])
    assert [[each.numel() for each in parcel] for parcel in found] == [
        [large.numel()],
        [half.numel(), half.numel()],
        [5, 5],
        [7, half.numel()],
    ]
    assert packed_bytes([half, large, other, half, small, half, other]) == 2 * half.nbytes
    assert packed_bytes([large, small]) == 0


def test_messages_stay_small_whatever_the_number_of_tensors() -> None:
    many = [torch.empty(999) for _ in range(1000)]
    assert ALONE_BYTES <= packed_bytes(many) < ALONE_BYTES + many[0].nbytes

"""What the CUDA allocator may count for a block, without a GPU; the real thing is in benchmarks/gpu/matrix.py."""

from __future__ import annotations

import pytest
import torch

from graphopt.device import allocator
from graphopt.device.storages import allocated_bytes, planned_bytes

MIB = 1 << 20
CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")


@pytest.mark.parametrize(
    ("asked", "least", "most"),
    [(0, 0, 0), (1, 512, 512), (MIB, MIB, MIB), (MIB + 1, MIB + 512, 2 * MIB + 512), (9 * MIB, 9 * MIB, 10 * MIB)],
)
def test_a_large_block_may_keep_a_mebibyte_that_was_not_asked_for(
    asked: int, least: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cut, expected in ((False, most), (True, least)):
        monkeypatch.setattr(allocator, "cuts_to_size", lambda _index, cut=cut: cut)
        assert planned_bytes(asked, CUDA) == expected
        assert allocated_bytes(asked, CUDA) == least
        assert planned_bytes(asked, CPU) == allocated_bytes(asked, CPU) == asked

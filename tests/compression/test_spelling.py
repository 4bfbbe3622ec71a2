"""Methods as plain data."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch

from graphopt.base.errors import UsageError
from graphopt.compression.choose import Auto
from graphopt.compression.methods import DGC, QSGD, Compression, EightBit, HalfCast, PowerSGD, Threshold, TopK
from graphopt.compression.spelling import from_spelled, method_from_spelled, spelled

METHODS: tuple[Compression | None, ...] = (
    None,
    HalfCast(torch.bfloat16),
    EightBit(),
    QSGD(4, seed=3),
    TopK(0.5),
    DGC(0.01, 0.8, 0.5, 7),
    DGC(),
    Threshold(0.1),
    PowerSGD(3, 1),
)


@pytest.mark.parametrize("how", (*METHODS, Auto(), Auto((TopK(), EightBit()))), ids=str)
def test_it_comes_back_from_a_file_that_holds_no_code(how: Compression | Auto | None) -> None:
    file = io.BytesIO()
    torch.save(spelled(how), file)
    file.seek(0)
    assert from_spelled(torch.load(file, weights_only=True)) == how


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"method": "Zip"},
        {"method": "TopK"},
        {"method": "TopK", "ratio": 0.1, "more": 1},
        {"method": "Auto"},
        {"method": "Auto", "candidates": [{"method": "Auto", "candidates": []}]},
        {"method": "TopK", "ratio": 2.0},
    ],
)
def test_what_is_no_method_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        from_spelled(data)


def test_a_choice_is_no_method() -> None:
    with pytest.raises(UsageError):
        method_from_spelled(spelled(Auto()))

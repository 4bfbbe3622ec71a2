"""The Triton kernels, compiled and run."""

from __future__ import annotations

from importlib import import_module

import pytest

from tests.support.on_gpu import DEVICE, ON_GPU

pytestmark = [
    *ON_GPU,
    pytest.mark.skipif(DEVICE != "cuda", reason="the interpreter's turn is tests/kernels/test_triton.py"),
]


@pytest.mark.parametrize("check", ["norm", "adam", "quantize", "sparsify"])
def test_triton_kernels_are_the_stock_ones(check: str) -> None:
    pytest.importorskip("triton")
    import_module("tests.support.triton_checks").CHECKS[check](DEVICE)

"""Gradients into accumulators."""

from __future__ import annotations

import math

import pytest
import torch

from graphopt import kernels
from tests.support.tensors import same_bits, ulps

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(7,), (130, 257), (), (0,), (40_000,)])
def test_first_writes_and_then_adds(kind: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    first, second = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    accumulator = torch.full(shape, math.nan)
    with kernels.use(kind):
        kernels.accumulate_(accumulator, first, 0.0)
        assert same_bits([accumulator], [first.float()])
        kernels.accumulate_(accumulator, second, 1.0)
    assert same_bits([accumulator], [first.float() + second.float()])


def test_writing_keeps_the_sign_of_zero(kind: str) -> None:
    accumulator = torch.zeros(3)
    with kernels.use(kind):
        kernels.accumulate_(accumulator, torch.tensor([-0.0, 0.0, -0.0]), 0.0)
    assert torch.signbit(accumulator).tolist() == [True, False, True]


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_layout(kind: str, dtype: torch.dtype) -> None:
    gradient = torch.randn(33, 65).to(dtype)
    accumulator = torch.zeros(65, 33).t()
    with kernels.use(kind):
        kernels.accumulate_(accumulator, gradient, 0.0)
        kernels.accumulate_(accumulator, gradient.t().contiguous().t(), 1.0)
        kernels.accumulate_(accumulator, torch.tensor(2.0, dtype=dtype).expand(33, 65), 1.0)
    assert same_bits([accumulator.contiguous()], [gradient.float() + gradient.float() + 2])


def test_any_beta(kind: str) -> None:
    accumulator = torch.tensor([2.0, 4.0])
    with kernels.use(kind):
        kernels.accumulate_(accumulator, torch.tensor([1.0, 1.0]), 0.5)
    assert accumulator.tolist() == [2, 3]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_products(kind: str, transposed: bool, dtype: torch.dtype) -> None:
    a, b = torch.randn(24, 50).to(dtype), torch.randn(50, 36).to(dtype)
    accumulator = torch.full((36, 24), math.nan).t() if transposed else torch.full((24, 36), math.nan)
    with kernels.use(kind):
        kernels.accumulate_mm_(accumulator, a, b, 0.0)
        assert same_bits([accumulator.contiguous()], [torch.mm(a, b).float()])
        kernels.accumulate_mm_(accumulator, a, b, 1.0)
    torch.testing.assert_close(accumulator, 2 * torch.mm(a, b).float(), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("columns", [4, 160])
@pytest.mark.parametrize("rows", [2, 16, 64, 384, 8192])
def test_a_product_added_is_the_sum_of_both_but_for_rounding(rows: int, columns: int) -> None:
    """Which sums are equal to the bit depends on the CPU; none is further off than terms added one by one would be.

    On an AMD EPYC 1.6 ulps were measured with 160 columns and 7.8 with 4, both with 8,192 rows.
    """
    a, b, accumulator = torch.randn(rows, 96).t(), torch.randn(rows, columns), torch.randn(96, columns)
    expected = accumulator + torch.mm(a, b)
    kernels.accumulate_mm_(accumulator, a, b, 1.0)
    assert ulps(accumulator, expected) <= 4 + rows**0.5

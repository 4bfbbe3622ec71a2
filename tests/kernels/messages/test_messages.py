"""Gradients in and out of one tensor, sums of half ones, and state that an overflow leaves alone."""

from __future__ import annotations

import math

import pytest
import torch

from graphopt import kernels
from tests.support.tensors import clones, random_tensors, same_bits

HALF = (torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("of", [torch.float32, torch.float16])
def test_packed_tensors_come_back_rounded_once(dtype: torch.dtype, of: torch.dtype) -> None:
    tensors = random_tensors(0, of)
    message = kernels.pack(tensors, dtype)
    assert same_bits([message], [torch.cat([tensor.reshape(-1) for tensor in tensors]).to(dtype)])
    results = [torch.full_like(tensor, math.nan) for tensor in tensors]
    kernels.unpack_(message, results)
    assert same_bits(results, [tensor.to(dtype).to(of) for tensor in tensors])


def test_nothing_is_packed_into_nothing() -> None:
    assert kernels.pack([], torch.float16).shape == (0,)


def test_elements_travel_in_the_order_of_memory() -> None:
    tensor = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    message = kernels.pack([tensor, tensor[0, 0, 0, 0]], torch.float32)
    assert torch.equal(message[:-1], tensor.permute(0, 2, 3, 1).reshape(-1))
    result = torch.empty_like(tensor)
    kernels.unpack_(message[:-1], [result])
    assert torch.equal(result, tensor)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("size", [0, 1, 127, 128, 129, 70_001])
def test_parts_are_summed_in_fp32_and_rounded_once(kind: str, dtype: torch.dtype, size: int) -> None:
    received = (torch.randn(3 * size, generator=torch.Generator().manual_seed(size)) * 100).to(dtype)
    a, b, c = received.float().view(3, size)
    with kernels.use(kind):
        assert same_bits([kernels.sum_parts(received, 3)], [((a + b) + c).to(dtype)])


def test_a_sum_of_parts_that_is_not_finite_stays_so(kind: str) -> None:
    received = torch.tensor([6e4, math.nan, -math.inf, 6e4, 1.0, 1.0], dtype=torch.float16)
    with kernels.use(kind):
        total = kernels.sum_parts(received, 2)
    assert not total.isfinite().any() and total[1].isnan()


@pytest.mark.parametrize("overflow", [0.0, 1.0])
def test_state_is_what_is_pending_but_after_an_overflow(overflow: float) -> None:
    state, pending = random_tensors(0), random_tensors(1)
    before = clones(state)
    kernels.commit_(state, pending, torch.tensor(overflow))
    assert same_bits(state, before if overflow else pending)


def test_the_schemas_say_what_is_written() -> None:
    tensors, utils = random_tensors(0)[:2], ("test_schema", "test_faketensor")
    message = kernels.pack(tensors, torch.float16)
    torch.library.opcheck(kernels.pack, (tensors, torch.float16), test_utils=utils)
    torch.library.opcheck(kernels.unpack_, (message, tensors), test_utils=utils)
    torch.library.opcheck(kernels.sum_parts, (torch.ones(8, dtype=torch.bfloat16), 2), test_utils=utils)
    torch.library.opcheck(kernels.commit_, (tensors, clones(tensors), torch.zeros(())), test_utils=utils)

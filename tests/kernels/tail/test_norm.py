"""The norm of the gradients and the flag, in one op."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from graphopt import kernels
from tests.support.tensors import KINDS, clones, random_tensors, same_bits, ulps

NORM_TYPES = (1.0, 2.0, 3.0, 0.5, math.inf)


def both(gradients: list[Tensor], norm_type: float = 2.0) -> tuple[float, float]:
    """The op's norm and flag, as numbers; scalars, fp32 but for an fp64 norm; gradients keep their bits."""
    before = clones(gradients)
    norm, found_inf = kernels.gradient_norm(gradients, norm_type)
    assert norm.dtype == (torch.float64 if any(g.dtype == torch.float64 for g in gradients) else torch.float32)
    assert found_inf.dtype == torch.float32
    assert norm.shape == found_inf.shape == ()
    assert same_bits(before, gradients)
    return float(norm), float(found_inf)


def exact(gradients: list[Tensor], norm_type: float) -> float:
    """The norm in fp64."""
    everything = torch.cat([g.double().reshape(-1) for g in gradients])
    return float(torch.linalg.vector_norm(everything, norm_type))


@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_every_norm_of_every_dtype(kind: str, norm_type: float, dtype: torch.dtype) -> None:
    gradients = random_tensors(0, dtype)
    with kernels.use(kind):
        norm, found_inf = both(gradients, norm_type)
    assert norm == pytest.approx(exact(gradients, norm_type), rel=1e-5)
    assert found_inf == 0


@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stock_is_what_clip_grad_norm_finds_bit_for_bit(norm_type: float, dtype: torch.dtype) -> None:
    params = [torch.zeros(10_000, dtype=dtype), torch.zeros(300, 7, dtype=dtype), torch.zeros((), dtype=dtype)]
    for param in params:
        param.grad = torch.randn(param.shape, dtype=dtype)
    gradients = clones([p.grad for p in params if p.grad is not None])
    expected = torch.nn.utils.clip_grad_norm_(params, 1.0, norm_type)
    with kernels.use("stock"):
        assert same_bits([kernels.gradient_norm(gradients, norm_type)[0]], [expected])


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, math.inf])
def test_own_is_the_exact_norm_within_two_ulps(norm_type: float) -> None:
    gradients = [torch.randn(100_003), torch.randn(300, 7), torch.randn(())]
    with kernels.use("own"):
        norm, _ = kernels.gradient_norm(gradients, norm_type)
    assert ulps(norm, torch.tensor(exact(gradients, norm_type))) <= 2


@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_one_bad_element_anywhere_is_found(kind: str, norm_type: float, bad: float, dtype: torch.dtype) -> None:
    for position in (0, 4096, 9_999):
        gradients = [*random_tensors(0, dtype), torch.ones(10_000, dtype=dtype), torch.ones(3, dtype=dtype)]
        gradients[-2][position] = bad
        with kernels.use(kind):
            norm, found_inf = both(gradients, norm_type)
        assert found_inf == 1
        assert not math.isfinite(norm)


@pytest.mark.parametrize(("norm_type", "value"), [(2.0, 1e25), (3.0, 1e15), (8.0, 1e37), (1.0, 3e38 / 1200)])
def test_a_sum_beyond_fp32_of_finite_gradients_is_no_overflow(kind: str, norm_type: float, value: float) -> None:
    gradients = [torch.full((1000,), value), torch.full((10, 10), -value).t()]
    with kernels.use(kind):
        norm, found_inf = both(gradients, norm_type)
    assert norm == pytest.approx(exact(gradients, norm_type), rel=1e-5)
    assert found_inf == 0


def test_a_norm_beyond_fp32_is_infinite_and_still_no_overflow(kind: str) -> None:
    with kernels.use(kind):
        assert both([torch.full((4,), 3e38)]) == (math.inf, 0)


def test_half_gradients_whose_norm_is_beyond_fp16(kind: str) -> None:
    """torch's clip_grad_norm_ adds fp16 squares up in fp16: infinity, and every gradient is set to zero."""
    gradients = [torch.full((100,), 60_000.0, dtype=torch.float16), torch.full((100,), 2.0, dtype=torch.float16)]
    with kernels.use(kind):
        norm, found_inf = both(gradients)
    assert norm == pytest.approx(exact(gradients, 2.0), rel=1e-5)
    assert found_inf == 0


@pytest.mark.parametrize("norm_type", NORM_TYPES)
def test_nothing_and_zeros_have_norm_zero(kind: str, norm_type: float) -> None:
    with kernels.use(kind):
        assert both([], norm_type) == (0, 0)
        assert both([torch.zeros(3, 4), torch.full((2,), -0.0)], norm_type) == (0, 0)
        assert both([torch.empty(0), torch.tensor([3.0])], norm_type) == (3, 0)


@pytest.mark.parametrize("norm_type", NORM_TYPES)
def test_layouts(kind: str, norm_type: float) -> None:
    """Every element counts as often as it is there, and memory between them not at all."""
    gaps = torch.full((20,), math.nan)
    gaps[::2] = torch.arange(10.0)
    gradients = [
        torch.randn(9, 4).t(),
        gaps[::2],
        torch.randn(2, 3, 5, 5).contiguous(memory_format=torch.channels_last),
        torch.tensor(2.0).expand(6, 7),
    ]
    with kernels.use(kind):
        norm, found_inf = both(gradients, norm_type)
    assert norm == pytest.approx(exact(gradients, norm_type), rel=1e-5)
    assert found_inf == 0


def test_dtypes_mixed(kind: str) -> None:
    gradients = [random_tensors(i, d)[0] for i, d in enumerate((torch.float32, torch.float16, torch.bfloat16))]
    with kernels.use(kind):
        assert both(gradients)[0] == pytest.approx(exact(gradients, 2.0), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@given(
    sizes=st.lists(st.integers(0, 5000), max_size=5),
    norm_type=st.sampled_from(NORM_TYPES),
    magnitude=st.sampled_from((1e-6, 1.0, 1e6)),
    seed=st.integers(0, 100),
)
@settings(max_examples=60, deadline=None)
def test_any_sizes(kind: str, sizes: list[int], norm_type: float, magnitude: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    gradients = [torch.randn(size, generator=generator) * magnitude for size in sizes]
    with kernels.use(kind):
        norm, found_inf = both(gradients, norm_type)
    expected = exact(gradients, norm_type) if sum(sizes) else 0.0
    assert norm == pytest.approx(expected, rel=1e-5)
    assert found_inf == 0

"""Stochastic quantization: right in the mean, no worse than the paper's bound, and never the same twice."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from graphopt import kernels
from graphopt.kernels.quantize.blocks import BLOCK_ELEMENTS, block_bytes
from graphopt.kernels.quantize.philox import philox
from tests.support.tensors import KINDS, same_bits

BITS = (8, 4, 2)
SIZES = (0, 1, 7, BLOCK_ELEMENTS - 1, BLOCK_ELEMENTS, BLOCK_ELEMENTS + 1, 3 * BLOCK_ELEMENTS + 5)


def sent(gradients: list[Tensor], bits: int, seed: int = 0, draw: int = 0, rank: int = 0) -> list[Tensor]:
    """What arrives of one rank."""
    wire = kernels.qsgd(gradients, torch.zeros(()), None, bits, 1, seed, draw, rank)
    results = [torch.full_like(gradient, math.nan) for gradient in gradients]
    kernels.dequantize_qsgd_(wire, results, 1, bits, None)
    return results


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0, 0, 0, 0], [0, 0], "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_random_numbers_are_philox(counter: list[int], key: list[int], words: str) -> None:
    """Known answers of the authors' library, Random123."""
    a, b, c, d = counter
    found = philox((torch.tensor(a), torch.tensor(b), c, d), (key[0], key[1]))
    assert " ".join(f"{int(word):08x}" for word in found) == words


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_mean_is_the_gradient_and_the_variance_within_the_papers_bound(
    kind: str, bits: int, dtype: torch.dtype
) -> None:
    """Lemma 3.1: with s levels of n elements at most min(n / s², √n / s) times the squared norm."""
    generator = torch.Generator().manual_seed(bits)
    gradient = (torch.randn(BLOCK_ELEMENTS, generator=generator) * 1e-3).to(dtype)
    levels, draws = 2 ** (bits - 1) - 1, 200
    like = torch.zeros(BLOCK_ELEMENTS)
    with kernels.use(kind):
        wires = [kernels.qsgd([gradient], torch.zeros(()), None, bits, 1, 3, draw, 1) for draw in range(draws)]
        results = [torch.empty_like(like) for _ in wires]
        for wire, result in zip(wires, results, strict=True):
            kernels.dequantize_qsgd_(wire, [result], 1, bits, None)
    errors = torch.stack(results).double() - gradient.double()
    step = float(gradient.abs().max()) / levels
    assert errors.abs().max() <= step * (1 + 2.0**-14)
    assert errors.mean(0).abs().max() <= 5 * step / 2 / draws**0.5
    squared_norm = float(gradient.double().square().sum())
    bound = min(BLOCK_ELEMENTS / levels**2, BLOCK_ELEMENTS**0.5 / levels) * squared_norm
    assert 0 < errors.square().sum(1).mean() <= bound


@pytest.mark.parametrize("bits", BITS)
def test_ranks_steps_seeds_blocks_and_elements_draw_differently(kind: str, bits: int) -> None:
    """Of elements half a step from either level two draws agree about half the time; the same draw always."""
    gradient = torch.full((4, BLOCK_ELEMENTS), 0.5)
    gradient[:, 0] = 1.0
    places = [(0, 0, 0), (1, 0, 0), (2**32, 0, 0), (-1, 0, 0), (0, 1, 0), (0, 2**31, 0), (0, 0, 1), (0, 0, 2)]
    with kernels.use(kind):
        up = [sent([gradient], bits, *place)[0] > 0.5 for place in places]
        again = sent([gradient], bits, *places[1])[0] > 0.5
    assert torch.equal(up[1], again)
    pairs = [
        *combinations(up, 2),
        *combinations(up[0], 2),
        (up[0][:, 1:], up[0][:, :-1]),
        (up[0][:, 8:], up[0][:, :-8]),
    ]
    for one, other in pairs:
        assert 0.4 < (one == other).float().mean() < 0.6


@pytest.mark.parametrize("bits", BITS)
def test_what_needs_no_rounding_is_sent_exactly(kind: str, bits: int) -> None:
    most = 2 ** (bits - 1) - 1
    gradient = torch.arange(-most, most + 1).float().repeat(600)[:1500] * 2.0**-9
    with kernels.use(kind):
        (result,) = sent([gradient], bits)
    assert torch.equal(result, gradient)


def test_bits_make_a_message_short() -> None:
    for bits in BITS:
        wire = kernels.qsgd([torch.ones(3 * BLOCK_ELEMENTS)], torch.zeros(()), None, bits, 2, 0, 0, 0)
        assert wire.numel() == 4 * (4 + BLOCK_ELEMENTS * bits // 8)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.sampled_from(SIZES), st.integers(-140, 20)), max_size=3),
    st.sampled_from(BITS),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(0, 2**40),
    st.sampled_from((None, math.nan, math.inf, 3e38)),
    st.sampled_from((torch.float32, torch.float16, torch.bfloat16)),
)
def test_own_kernels_have_the_stock_bits(
    sizes: list[tuple[int, int]], bits: int, seed: int, draw: int, bad: float | None, dtype: torch.dtype
) -> None:
    gradients = [(torch.randn(size, dtype=torch.float64) * 2.0**power).to(dtype) for size, power in sizes]
    if gradients and gradients[0].numel() and bad is not None:
        gradients[0][-1] = bad
    results = []
    for kind in KINDS:
        with kernels.use(kind):  # type: ignore[arg-type]
            overflow = torch.zeros(())
            wire = kernels.qsgd(gradients, overflow, torch.tensor(0.7), bits, 3, seed, draw, 2)
            total = [torch.empty_like(gradient) for gradient in gradients]
            kernels.dequantize_qsgd_(torch.cat([wire, wire]), total, 2, bits, torch.tensor(1.1))
            results.append([wire, overflow, *total])
    assert same_bits(*results)


@pytest.mark.parametrize("bits", BITS)
def test_what_is_not_finite_sets_the_flag_and_is_not_sent(kind: str, bits: int) -> None:
    gradient, overflow = torch.zeros(700, dtype=torch.float16), torch.zeros(())
    gradient[3] = math.inf
    with kernels.use(kind):
        wire = kernels.qsgd([gradient], overflow, None, bits, 1, 0, 0, 0)
    assert overflow == 1 and not wire.any()
    assert gradient[3] == math.inf, "gradients are only read"


def test_a_parameter_is_sent_the_same_in_any_company(kind: str) -> None:
    one, other = torch.randn(700), torch.randn(30)
    with kernels.use(kind):
        together = sent([one, other], 4)
        apart = [*sent([one], 4), *sent([other], 4)]
    assert same_bits(together, apart)


def test_a_graph_hands_over_its_step() -> None:
    """`draw` is an input of the graph, not a constant of it."""
    graph = torch.fx.Graph()
    gradient, overflow, draw = (graph.placeholder(name) for name in ("gradient", "overflow", "draw"))
    graph.output(graph.call_function(kernels.qsgd, ([gradient], overflow, None, 2, 1, 0, draw, 0)))
    module = torch.fx.GraphModule(torch.nn.Module(), graph)
    inputs = torch.randn(600), torch.zeros(())
    for step in (0, 7):
        assert torch.equal(module(*inputs, step), kernels.qsgd([inputs[0]], inputs[1], None, 2, 1, 0, step, 0))


def test_fake_tensors_have_the_results_shapes() -> None:
    with FakeTensorMode():
        gradients = [torch.empty(700), torch.empty(3, 4)]
        wire = kernels.qsgd(gradients, torch.empty(()), None, 4, 2, 0, 0, 0)
        assert (wire.shape, wire.dtype) == ((4 * block_bytes(4),), torch.uint8)


def test_the_schemas_say_what_is_written() -> None:
    gradients, utils = [torch.randn(600)], ("test_schema", "test_faketensor")
    torch.library.opcheck(kernels.qsgd, (gradients, torch.zeros(()), None, 4, 1, 0, 1, 0), test_utils=utils)
    wire = kernels.qsgd(gradients, torch.zeros(()), None, 4, 1, 0, 0, 0)
    torch.library.opcheck(kernels.dequantize_qsgd_, (wire, gradients, 1, 4, None), test_utils=utils)

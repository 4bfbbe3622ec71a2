"""8-bit gradients: what is sent and what is kept back are the gradient, and the sum of ranks loses nothing."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from graphopt import kernels
from graphopt.kernels.quantize.blocks import BLOCK_ELEMENTS, block_bytes, quantized_bytes
from tests.support.tensors import KINDS, clones, same_bits

SIZES = (0, 1, 7, BLOCK_ELEMENTS - 1, BLOCK_ELEMENTS, BLOCK_ELEMENTS + 1, 3 * BLOCK_ELEMENTS + 5)
tensors = st.lists(
    st.builds(
        lambda size, seed, power, shape: shaped(size, seed, power, shape),
        *(
            st.sampled_from(SIZES),
            st.integers(0, 999),
            st.integers(-149, 120),
            st.sampled_from(("normal", "heavy", "0")),
        ),
    ),
    max_size=4,
)


def shaped(size: int, seed: int, power: int, shape: str) -> Tensor:
    """Elements of about 2^power, of one magnitude or of very different ones, or zeros."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, generator=generator, dtype=torch.float64).clamp(-8, 8) * 2.0**power
    x = x * torch.rand(size, generator=generator, dtype=torch.float64) ** 40 if shape == "heavy" else x
    return x.float() * (shape != "0")


def quantized(gradients: list[Tensor], parts: int = 1) -> tuple[Tensor, list[Tensor], float]:
    """The wire, what is kept back, and the flag."""
    kept, overflow = clones(gradients), torch.zeros(())
    return kernels.quantize_(kept, [], overflow, None, parts), kept, float(overflow)


def dequantized(wire: Tensor, like: list[Tensor], copies: int = 1, scale: Tensor | None = None) -> list[Tensor]:
    results = [torch.full_like(tensor, math.nan) for tensor in like]
    kernels.dequantize_(wire, results, copies, scale)
    return results


def steps(wire: Tensor) -> Tensor:
    """One a block."""
    return wire.view(-1, block_bytes(8))[:, :4].contiguous().view(torch.float32).view(-1)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(KINDS), tensors, st.integers(1, 4), st.sampled_from((None, 0.25, 0.3)), st.booleans())
def test_sent_and_kept_are_the_input_to_the_bit(
    kind: str, gradients: list[Tensor], parts: int, inverse_scale: float | None, with_residuals: bool
) -> None:
    residuals = [gradient.roll(1) * 0.01 for gradient in gradients] if with_residuals else []
    scale = None if inverse_scale is None else torch.tensor(inverse_scale)
    inputs = [gradient * (1 if scale is None else scale) for gradient in gradients]
    inputs = [x + r for x, r in zip(inputs, residuals, strict=True)] if residuals else inputs
    overflow = torch.zeros(())
    with kernels.use(kind):  # type: ignore[arg-type]
        wire = kernels.quantize_(gradients, residuals, overflow, scale, parts)
        sent = dequantized(wire, gradients)
    assert wire.numel() == quantized_bytes([g.numel() for g in gradients], 8, parts) and wire.numel() % parts == 0
    assert overflow == 0
    for x, s, kept in zip(inputs, sent, gradients, strict=True):
        assert torch.equal(s + kept, x)


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(KINDS), tensors)
def test_an_error_is_half_a_step_and_a_step_the_127th_of_the_largest(kind: str, gradients: list[Tensor]) -> None:
    with kernels.use(kind):  # type: ignore[arg-type]
        wires = [quantized([gradient]) for gradient in gradients]
    for gradient, (wire, (kept,), _) in zip(gradients, wires, strict=True):
        for block, left, step in zip(
            gradient.split(BLOCK_ELEMENTS), kept.split(BLOCK_ELEMENTS), steps(wire).double(), strict=False
        ):
            if not block.numel():
                continue
            largest = block.abs().max().double()
            if largest < 2.0**-100:
                assert step == 0
                continue
            assert largest / 127 * (1 - 2.0**-24) <= step <= largest / 127 * (1 + 2.0**-15)
            assert left.abs().max() <= step * (0.5 + 2.0**-16)


@settings(deadline=None, max_examples=40)
@given(tensors, st.integers(1, 3), st.sampled_from((None, math.nan, math.inf, -math.inf, 3e38)))
def test_own_kernels_have_the_stock_bits(gradients: list[Tensor], parts: int, bad: float | None) -> None:
    if gradients and gradients[0].numel() and bad is not None:
        gradients[0][-1] = bad
    results = {}
    for kind in KINDS:
        with kernels.use(kind):  # type: ignore[arg-type]
            residuals = [gradient.flip(0) * 0.3 for gradient in gradients]
            kept, overflow = clones(gradients), torch.zeros(())
            wire = kernels.quantize_(kept, residuals, overflow, torch.tensor(0.7), parts)
            received = [torch.cat([part] * parts) for part in wire.chunk(parts)] if wire.numel() else [wire] * parts
            others = [kernels.requantize_(part, kept, rank, parts) for rank, part in enumerate(received)]
            sums = dequantized(torch.cat([wire, wire]), gradients, 2, torch.tensor(1.1))
            results[kind] = [wire, overflow, *kept, *others, *sums]
    assert same_bits(results["stock"], results["own"])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1.8e38])
@pytest.mark.parametrize("where", ["gradient", "residual"])
def test_what_is_not_finite_sets_the_flag_and_is_not_sent(kind: str, bad: float, where: str) -> None:
    gradient, residual = torch.full((2000,), 127.0), torch.zeros(2000)
    (gradient if where == "gradient" else residual)[700] = bad
    overflow = torch.zeros(())
    with kernels.use(kind):
        (sent,) = dequantized(kernels.quantize_([gradient], [residual], overflow, None, 1), [gradient])
        assert overflow == 1
        kernels.quantize_([torch.ones(5)], [], overflow, None, 1)
    assert overflow == 1, "it is for others to reset"
    assert sent[512:1024].eq(0).all() and sent[:512].eq(127).all() and sent[1024:].eq(127).all()


def test_nothing_and_zeros_and_denormals(kind: str) -> None:
    gradients = [torch.zeros(3, 0), torch.zeros(600), torch.full((3,), 1e-40), torch.full((), -127.0)]
    with kernels.use(kind):
        wire, kept, overflow = quantized(gradients, parts=3)
        sent = dequantized(wire, gradients)
        assert quantized([])[0].numel() == 0
    assert overflow == 0 and wire.numel() == 6 * block_bytes(8)
    assert [float(s.abs().sum()) for s in sent] == [0, 0, 0, 127]
    assert same_bits([kept[2]], [gradients[2]]) and float(kept[3]) == 0


def ranks_of(world: int, sizes: list[int], seed: int) -> list[list[Tensor]]:
    """The gradients of every rank, of very different magnitudes."""
    return [
        [shaped(size, seed + 10 * rank + i, -3 * i, "normal") for i, size in enumerate(sizes)] for rank in range(world)
    ]


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(KINDS),
    st.integers(2, 4),
    st.lists(st.sampled_from(SIZES), min_size=1, max_size=3),
    st.integers(0, 99),
)
def test_the_sum_of_ranks_and_all_that_they_keep_are_all_that_they_had(
    kind: str, world: int, sizes: list[int], seed: int
) -> None:
    """To W + 1 roundings of fp32: of the sum, of what is kept."""
    inputs = ranks_of(world, sizes, seed)
    with kernels.use(kind):  # type: ignore[arg-type]
        wires, kept, _ = zip(*(quantized(gradients, world) for gradients in inputs), strict=True)
        shares = [
            kernels.requantize_(torch.cat([wire.chunk(world)[rank] for wire in wires]), kept[rank], rank, world)
            if wires[0].numel()
            else wires[0]
            for rank in range(world)
        ]
        total = dequantized(torch.cat(shares), inputs[0])
    for i, result in enumerate(total):
        had = sum(gradients[i].double() for gradients in inputs)
        left = sum(gradients[i].double() for gradients in kept)
        largest = sum(float(gradients[i].abs().max()) if gradients[i].numel() else 0 for gradients in inputs)
        assert ((result.double() + left - had).abs() <= (world + 1) * 2.0**-24 * largest).all()


def test_a_rank_keeps_the_rounding_of_its_own_part_only(kind: str) -> None:
    (one,), (other,) = ranks_of(2, [4 * BLOCK_ELEMENTS - 9], 5)
    with kernels.use(kind):
        wires, (kept, _), _ = zip(quantized([one], 2), quantized([other], 2), strict=True)
        before = clones(kept)
        kernels.requantize_(torch.cat([wire.chunk(2)[1] for wire in wires]), kept, 1, 2)
    changed = (before[0] != kept[0]).nonzero()
    assert changed.numel() > BLOCK_ELEMENTS and changed.min() >= 2 * BLOCK_ELEMENTS


def test_a_sum_beyond_fp32_arrives_as_nan_and_what_is_kept_stays(kind: str) -> None:
    with kernels.use(kind):
        parts, kept, overflow = quantized([torch.full((600,), 1.6e38)], 3)
        before = clones(kept)
        first = parts.chunk(3)[0]
        part = kernels.requantize_(torch.cat([first] * 3), kept, 0, 3)
        (result,) = dequantized(torch.cat([part, parts[len(first) :]]), kept)
    assert overflow == 0 and same_bits(before, kept)
    assert result[:512].isnan().all() and result[512:].isfinite().all()


def test_sums_are_in_rank_order_and_times_the_scale(kind: str) -> None:
    ranks = [[torch.randn(700, generator=torch.Generator().manual_seed(seed))] for seed in range(3)]
    with kernels.use(kind):
        wires = [quantized(gradients)[0] for gradients in ranks]
        (a,), (b,), (c,) = (dequantized(wire, ranks[0]) for wire in wires)
        (total,) = dequantized(torch.cat(wires), ranks[0], 3, torch.tensor(0.3))
    assert torch.equal(total, ((a + b) + c) * 0.3)


def test_elements_travel_in_the_order_of_memory(kind: str) -> None:
    gradient = torch.randn(4, 24, 3, 5).to(memory_format=torch.channels_last)
    residual = torch.randn(4, 24, 3, 5).to(memory_format=torch.channels_last) * 0.01
    flat, flat_residual = (t.permute(0, 2, 3, 1).reshape(-1).clone() for t in (gradient, residual))
    overflow = torch.zeros(())
    with kernels.use(kind):
        wire = kernels.quantize_([gradient], [residual], overflow, None, 2)
        expected = kernels.quantize_([flat], [flat_residual], overflow, None, 2)
        (sent,) = dequantized(wire, [gradient])
        (flat_sent,) = dequantized(expected, [flat])
    assert torch.equal(wire, expected)
    assert torch.equal(gradient.permute(0, 2, 3, 1).reshape(-1), flat)
    assert torch.equal(sent.permute(0, 2, 3, 1).reshape(-1), flat_sent)


def test_residuals_in_another_order_are_refused(kind: str) -> None:
    with kernels.use(kind), pytest.raises(AssertionError):
        kernels.quantize_([torch.ones(3, 4)], [torch.ones(4, 3).t()], torch.zeros(()), None, 1)


@pytest.mark.parametrize("gradient", [torch.ones(4, 4)[:, :2], torch.ones(4).half()])
def test_gradients_with_gaps_and_half_ones_are_refused(kind: str, gradient: Tensor) -> None:
    with kernels.use(kind), pytest.raises(AssertionError):
        kernels.quantize_([gradient], [], torch.zeros(()), None, 1)


def test_a_parameter_is_sent_the_same_in_any_company(kind: str) -> None:
    one, other = torch.randn(700), torch.randn(30)
    with kernels.use(kind):
        together, (alone, beside) = quantized([one, other])[0], (quantized([t])[0] for t in (one, other))
    assert torch.equal(together, torch.cat([alone, beside]))


def test_threads_do_not_change_a_bit() -> None:
    gradients, residuals = [torch.randn(300_001)], [torch.randn(300_001)]
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            kept = clones(gradients)
            with kernels.use("own"):
                wire = kernels.quantize_(kept, residuals, torch.zeros(()), None, 2)
                share = kernels.requantize_(wire, kept, 1, 2)
                results.append([wire, share, *kept, *dequantized(wire, kept)])
    finally:
        torch.set_num_threads(before)
    assert same_bits(*results)


def test_fake_tensors_have_the_results_shapes() -> None:
    with FakeTensorMode():
        gradients, flag = [torch.empty(700), torch.empty(3, 4)], torch.empty(())
        wire = kernels.quantize_(gradients, [], flag, None, 2)
        assert (wire.shape, wire.dtype) == ((4 * block_bytes(8),), torch.uint8)
        assert kernels.requantize_(wire, gradients, 1, 2).shape == (2 * block_bytes(8),)
        assert kernels.dequantize_(wire, gradients, 1, None) is None


def test_the_schemas_say_what_is_written() -> None:
    gradients, utils = [torch.randn(600)], ("test_schema", "test_faketensor")
    torch.library.opcheck(kernels.quantize_, (gradients, [torch.ones(600)], torch.zeros(()), None, 2), test_utils=utils)
    wire = quantized(gradients, 2)[0]
    torch.library.opcheck(kernels.requantize_, (wire, gradients, 1, 2), test_utils=utils)
    torch.library.opcheck(kernels.dequantize_, (wire, gradients, 1, None), test_utils=utils)

"""The largest elements into a wire, exactly, and back; the rest kept."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from graphopt import kernels
from graphopt.kernels.sparsify.wire import BLOCK_ELEMENTS, sparse_wire_bytes
from tests.support.tensors import KINDS, clones, same_bits

SIZES = (0, 1, 5, 700, 9000, BLOCK_ELEMENTS - 1, BLOCK_ELEMENTS, BLOCK_ELEMENTS + 1, 200_000)


def all_equal(n: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, (n,), generator=generator) * 0.5 - 0.25


def one_huge(n: int, generator: torch.Generator) -> Tensor:
    x = torch.randn(n, generator=generator) * 1e-6
    x[n // 2 : n // 2 + 1] = -1e30
    return x


def rising(n: int, _: torch.Generator) -> Tensor:
    return torch.arange(n) / max(n, 1)


def falling(n: int, _: torch.Generator) -> Tensor:
    return -torch.arange(n, 0, -1) / max(n, 1)


def half_zeros(n: int, generator: torch.Generator) -> Tensor:
    return torch.randn(n, generator=generator) * (torch.arange(n) < n // 2)


def nearly_all_zeros(n: int, generator: torch.Generator) -> Tensor:
    return torch.randn(n, generator=generator) * (torch.rand(n, generator=generator) < 0.001)


def heavy_tail(n: int, generator: torch.Generator) -> Tensor:
    return torch.randn(n, generator=generator) / torch.rand(n, generator=generator).clamp(min=1e-6) ** 3


def few_values(n: int, generator: torch.Generator) -> Tensor:
    return torch.randint(-3, 4, (n,), generator=generator).float()


def denormal(n: int, generator: torch.Generator) -> Tensor:
    return torch.randn(n, generator=generator) * 1e-43


def periodic(n: int, generator: torch.Generator) -> Tensor:
    """Large only where a sample of equal distances may or may not look."""
    return torch.where(torch.arange(n) % 64 == 0, 100.0, 1.0) * torch.randn(n, generator=generator)


def many_equal_before_larger(n: int, generator: torch.Generator) -> Tensor:
    """More that are equal than lists have room for, and then what is larger by an ulp."""
    large = torch.where(torch.arange(n) < 0.85 * n, 1.0, 1.0 + 2**-23)
    return torch.where(torch.rand(n, generator=generator) < 0.03, large, torch.rand(n, generator=generator) / 2)


def normal(n: int, generator: torch.Generator) -> Tensor:
    return torch.randn(n, generator=generator)


def zeros(n: int, _: torch.Generator) -> Tensor:
    return torch.zeros(n)


SHAPES_OF_VALUES = (
    *(all_equal, one_huge, rising, falling, half_zeros, nearly_all_zeros, heavy_tail, few_values, denormal),
    *(periodic, many_equal_before_larger, normal, zeros),
)


def flag() -> Tensor:
    return torch.zeros(())


def largest(x: Tensor, count: int, threshold: float = 0.0) -> Tensor:
    """Indices, ascending, of what must be sent: by sorting."""
    magnitudes = x.abs().numpy()
    order = np.argsort(-magnitudes, kind="stable")[:count]
    return torch.from_numpy(np.sort(order[(magnitudes[order] > 0) & (magnitudes[order] >= np.float32(threshold))]))


def written(wire: Tensor, sizes: list[int], counts: list[int]) -> list[tuple[Tensor, Tensor]]:
    """Indices and values of every parameter in a wire, read as `graphopt.kernels.sparsify.wire` says they lie."""
    data, result = wire.numpy().tobytes(), []
    for size, count in zip(sizes, counts, strict=True):
        blocks, room = math.ceil(size / 65536), min(count, size)
        in_block = np.frombuffer(data[: 4 * blocks], np.int32)
        values = np.frombuffer(data[4 * blocks : 4 * (blocks + room)], np.float32)
        places = np.frombuffer(data[4 * (blocks + room) : 4 * (blocks + room) + 2 * room], np.uint16)
        sent = int(in_block.sum())
        indices = np.repeat(np.arange(blocks) * 65536, in_block) + places[:sent]
        assert not values[sent:].any()
        assert not places[sent:].any()
        result.append((torch.tensor(indices), torch.tensor(values[:sent])))
        data = data[4 * (blocks + room) + math.ceil(room / 2) * 4 :]
    assert not data
    return result


@pytest.mark.fast(1)
@pytest.mark.parametrize("kind", KINDS)
@given(
    parameters=st.lists(
        st.tuples(st.sampled_from(SIZES), st.sampled_from(SHAPES_OF_VALUES), st.sampled_from((1e-5, 0.01, 0.1, 1.0))),
        min_size=1,
        max_size=3,
    ),
    inverse_scale=st.sampled_from((None, 0.5, 1 / 3000)),
    with_residuals=st.booleans(),
    quantile=st.sampled_from((None, 0.5, 0.999)),
    seed=st.integers(0, 100),
)
@settings(max_examples=60, deadline=None)
def test_exactly_the_largest_are_sent_and_all_else_is_kept(
    kind: str,
    parameters: list[tuple[int, object, float]],
    inverse_scale: float | None,
    with_residuals: bool,
    quantile: float | None,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    gradients = [values(size, generator) for size, values, _ in parameters]  # type: ignore[operator]
    residuals = [torch.randn(g.shape, generator=generator) * 0.1 for g in gradients] if with_residuals else []
    scale = None if inverse_scale is None else torch.tensor(inverse_scale)
    sums = [g * scale if scale is not None else g for g in clones(gradients)]
    sums = [x + r for x, r in zip(sums, residuals, strict=True)] if residuals else sums
    counts = [math.ceil(g.numel() * ratio) for g, (*_, ratio) in zip(gradients, parameters, strict=True)]
    first = next((x for x in sums if x.numel()), torch.ones(1)).abs()
    threshold = None if quantile is None else max(float(first.quantile(quantile)), 1e-30)
    before, overflow = clones(residuals), flag()
    with kernels.use(kind):
        wire = kernels.sparsify_(gradients, residuals, overflow, scale, counts, threshold)
        placed = [torch.full_like(g, math.nan) for g in gradients]
        kernels.desparsify_(wire, placed, 1, counts, None)
    assert overflow == 0
    assert same_bits(before, residuals)
    sent = written(wire, [g.numel() for g in gradients], counts)
    for x, kept, there, count, (indices, values) in zip(sums, gradients, placed, counts, sent, strict=True):
        assert indices.equal(largest(x, count, threshold or 0.0))
        assert same_bits([values], [x[indices]])
        assert same_bits([kept], [x.index_fill(0, indices, 0.0)])
        assert same_bits([there], [torch.zeros_like(x).index_copy(0, indices, values)])
        assert (there + kept).equal(x)


@pytest.mark.parametrize("values", SHAPES_OF_VALUES)
def test_own_wires_are_the_stock_ones_bit_for_bit_for_any_number_of_threads(values: object) -> None:
    wires, threads = [], torch.get_num_threads()
    for kind, number in (("stock", 1), ("own", 1), ("own", 2), ("own", 3)):
        generator = torch.Generator().manual_seed(1)
        gradients = [values(size, generator) for size in (1_300_000, 9000, 70_000)]  # type: ignore[operator]
        residuals = [torch.zeros(g.shape) for g in gradients]
        try:
            torch.set_num_threads(number)
            with kernels.use(kind):  # type: ignore[arg-type]
                wire = kernels.sparsify_(gradients, residuals, flag(), None, [13_000, 90, 70], None)
        finally:
            torch.set_num_threads(threads)
        wires.append([wire, *gradients])
    assert all(same_bits(wires[0], others) for others in wires[1:])


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_on_processors_without_wide_vectors(capability: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-k", "own and (largest or stock or misleads)", __file__]
    done = subprocess.run(command, env=os.environ | {"ATEN_CPU_CAPABILITY": capability}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_sample_that_misleads_changes_nothing(kind: str) -> None:
    """All that is looked at is large, and too few to fill the wire."""
    size, count = 1 << 20, 20_000
    x = torch.randn(size, generator=torch.Generator().manual_seed(0))
    x[:: (size // 4096) | 1] *= 1e6
    strata = np.arange(4096, dtype=np.uint64)
    random = (strata + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32)
    x[torch.from_numpy((strata * np.uint64(256) + random % np.uint64(256)).astype(np.int64))] *= 1e6
    gradients = [x.clone()]
    with kernels.use(kind):
        wire = kernels.sparsify_(gradients, [torch.zeros(size)], flag(), None, [count], None)
    ((indices, _),) = written(wire, [size], [count])
    assert indices.equal(largest(x, count))


def test_equal_elements_get_their_turn_one_after_the_other(kind: str) -> None:
    gradient, residual = torch.full((100_000,), 0.5), torch.zeros(100_000)
    turns = torch.zeros(100_000)
    with kernels.use(kind):
        for _ in range(20):
            kept = [gradient.clone()]
            wire = kernels.sparsify_(kept, [residual], flag(), None, [10_000], None)
            ((indices, _),) = written(wire, [100_000], [10_000])
            turns[indices] += 1
            residual = kept[0]
    assert turns.min() >= 1
    assert turns.max() <= 3


def test_the_momentum_is_that_of_the_paper(kind: str) -> None:
    """Lin et al., ICLR 2018: velocity and accumulation on each rank, both forgotten where something was sent."""
    generator = torch.Generator().manual_seed(0)
    shapes, counts = [(300, 300), (7,), (0,)], [900, 1, 0]
    u, v = ([torch.zeros(shape) for shape in shapes] for _ in range(2))
    momenta, residuals = clones(u), clones(v)
    for _ in range(5):
        gradients = [torch.randn(shape, generator=generator) for shape in shapes]
        expected = []
        for i, (gradient, count) in enumerate(zip(gradients, counts, strict=True)):
            u[i] = 0.9 * u[i] + gradient * 0.25
            v[i] = v[i] + u[i]
            expected.append(largest(v[i].view(-1), count))
        values = [x.view(-1)[indices] for x, indices in zip(v, expected, strict=True)]
        for x, indices in zip([*u, *v], [*expected, *expected], strict=True):
            x.view(-1)[indices] = 0
        before = clones(momenta)
        with kernels.use(kind):
            arguments = (flag(), torch.tensor(0.25), counts, 0.9)
            wire, moved = kernels.sparsify_momentum_(gradients, residuals, momenta, *arguments)
        assert same_bits(before, momenta)
        sent = written(wire, [g.numel() for g in gradients], counts)
        assert all(a.equal(b) for (a, _), b in zip(sent, expected, strict=True))
        assert same_bits([b for _, b in sent], values)
        assert same_bits([*moved, *gradients], [*u, *v])
        momenta, residuals = moved, gradients


def test_copies_are_added_in_their_order_and_scaled_once(kind: str) -> None:
    sizes, counts = [70_000, 3, 0], [7000, 2, 0]
    parts = [[torch.randn(size) * 10.0**rank for size in sizes] for rank in range(3)]
    scale = torch.tensor(3.7)
    with kernels.use(kind):
        wires = [kernels.sparsify_(clones(part), [], flag(), None, counts, None) for part in parts]
        result = [torch.full((size,), math.nan) for size in sizes]
        kernels.desparsify_(torch.cat(wires), result, 3, counts, scale)
    expected = [torch.zeros(size) for size in sizes]
    for wire in wires:
        for total, (indices, values) in zip(expected, written(wire, sizes, counts), strict=True):
            total[indices] += values
    assert same_bits(result, [total * scale for total in expected])


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("with_momentum", [False, True])
def test_one_bad_element_anywhere_sets_the_flag_and_harms_no_reader(kind: str, bad: float, with_momentum: bool) -> None:
    for position in (0, 4096, 99_999):
        gradients = [torch.randn(10), torch.randn(100_000), torch.randn(3)]
        gradients[1][position] = bad
        states, counts, overflow = [torch.zeros_like(g) for g in gradients], [1, 1000, 1], flag()
        with kernels.use(kind):
            if with_momentum:
                wire, _ = kernels.sparsify_momentum_(gradients, states, states, overflow, None, counts, 0.9)
            else:
                wire = kernels.sparsify_(gradients, states, overflow, None, counts, None)
            kernels.desparsify_(wire, clones(gradients), 1, counts, None)
        assert overflow == 1
        sent = written(wire, [10, 100_000, 3], counts)
        assert all(len(indices) <= count for (indices, _), count in zip(sent, counts, strict=True))


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_nothing_but_bad_elements(kind: str, bad: float) -> None:
    gradients, overflow = [torch.full((100_000,), bad)], flag()
    with kernels.use(kind):
        wire = kernels.sparsify_(gradients, [], overflow, None, [1000], None)
        kernels.desparsify_(wire, gradients, 1, [1000], None)
    assert overflow == 1


def test_a_sum_beyond_fp32_is_an_overflow_and_the_flag_is_never_reset(kind: str) -> None:
    overflow = flag()
    with kernels.use(kind):
        kernels.sparsify_([torch.full((4,), 3e38)], [torch.full((4,), 3e38)], overflow, None, [1], None)
        assert overflow == 1
        kernels.sparsify_([torch.ones(4)], [torch.ones(4)], overflow, None, [1], None)
    assert overflow == 1


def test_places_are_those_of_memory_whatever_the_layout(kind: str) -> None:
    image = torch.randn(4, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    gradients = [image, torch.randn(30, 40).t(), torch.randn(60)[::2], torch.randn(())]
    residuals = [torch.randn(g.shape) for g in gradients]
    momenta = [torch.randn(g.shape) for g in gradients]
    sums = [r + (0.5 * m + g) for g, r, m in zip(gradients, residuals, momenta, strict=True)]
    in_memory = [sums[0].permute(0, 2, 3, 1), sums[1].t(), *sums[2:]]
    counts = [50, 60, 3, 1]
    with kernels.use(kind):
        wire, moved = kernels.sparsify_momentum_(gradients, residuals, momenta, flag(), None, counts, 0.5)
        placed = [torch.empty_like(g) for g in gradients]
        kernels.desparsify_(wire, placed, 1, counts, None)
    sent = written(wire, [g.numel() for g in gradients], counts)
    for x, (indices, _), count in zip(in_memory, sent, counts, strict=True):
        assert indices.equal(largest(x.reshape(-1), count))
    for x, kept, there, u in zip(sums, gradients, placed, moved, strict=True):
        assert (kept + there).equal(x)
        assert (u[there != 0] == 0).all()


def test_few_bytes() -> None:
    """25 million parameters at 1 %: 6 bytes an element sent, and 4 a block."""
    assert sparse_wire_bytes([25_000_000], [250_000]) == 6 * 250_000 + 4 * 382
    assert sparse_wire_bytes([], []) == 0
    assert kernels.sparsify_([], [], flag(), None, [], None).numel() == 0


@pytest.mark.parametrize("kernel", ["sparsify_", "sparsify_momentum_", "desparsify_"])
def test_the_schemas_say_what_is_written_and_fakes_have_the_results_shapes(kernel: str) -> None:
    gradients, states, counts = ([torch.randn(9, 7), torch.randn(5)] for _ in range(2)), [], [6, 1]
    gradient, state = gradients
    wire = kernels.sparsify_(clones(gradient), states, flag(), None, counts, None)
    arguments = {
        "sparsify_": (gradient, state, flag(), None, counts, 0.5),
        "sparsify_momentum_": (gradient, state, clones(state), flag(), torch.tensor(0.5), counts, 0.9),
        "desparsify_": (wire, gradient, 1, counts, torch.tensor(2.0)),
    }[kernel]
    torch.library.opcheck(getattr(kernels, kernel), arguments, test_utils=("test_schema", "test_faketensor"))

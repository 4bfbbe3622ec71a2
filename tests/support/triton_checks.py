"""The Triton kernels against the stock ones: on a CPU under Triton's interpreter, on CUDA for real.

`python -m tests.support.triton_checks NAME` runs one check under the interpreter, which is chosen before Triton is
imported and so needs a process of its own.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from graphopt.kernels.quantize import cuda as quantize_cuda
from graphopt.kernels.quantize import definition as quantize_definition
from graphopt.kernels.sparsify import cuda as sparsify_cuda
from graphopt.kernels.sparsify import definition as sparsify_definition
from graphopt.kernels.tail import cuda as tail_cuda
from graphopt.kernels.tail import definition as tail_definition
from graphopt.kernels.tail import definition_update
from tests.kernels.sparsify.test_sparsify import denormal, few_values, half_zeros, heavy_tail
from tests.support.tensors import Adam, clones, random_tensors, same_bits, ulps

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def moved(tensors: list[Tensor], device: str) -> list[Tensor]:
    """To the device, strides kept."""
    return [tensor.to(device) for tensor in tensors]


def norm(device: str) -> None:
    """Of any exponent, with what is not finite, and where sums overflow."""
    for dtypes in (FLOATS[:1], FLOATS):
        gradients = moved([t for seed, dtype in enumerate(dtypes) for t in random_tensors(seed, dtype)], device)
        for p in (1.0, 2.0, 3.0, math.inf, 0.5):
            found, overflow = tail_cuda.gradient_norm(gradients, p)
            assert ulps(found, tail_definition.gradient_norm(gradients, p)[0]) < 40 and overflow == 0, (dtypes, p)
            for bad in (math.inf, math.nan):
                odd = torch.tensor([1.0, bad], device=device)
                found, overflow = tail_cuda.gradient_norm([*gradients, odd], p)
                assert overflow == 1 and not found.isfinite(), (p, bad)
    assert tail_cuda.gradient_norm([torch.full((9,), 1e25, device=device)], 2.0)[0] == 3e25
    assert tail_cuda.gradient_norm([torch.full((4,), 3e38, device=device)], 2.0) == (math.inf, 0)


def adam(device: str) -> None:
    """Adam and AdamW with scalars, masters and a skipped step, within some units of the last place.

    torch's kernel for CUDA does most of it in fp64, that for CPU in fp32 as ours: 2.4 units apart on an H200.
    """
    for dtype, *flags in (
        (FLOATS[0], False, False, True),
        (FLOATS[1], True, False, False),
        (FLOATS[2], False, True, True),
    ):
        (own, half), (stock, expected) = (_adam_steps(m, device, dtype, *flags) for m in (tail_cuda, definition_update))
        worst = max(map(ulps, own, stock))
        assert worst <= (2 if device == "cpu" else 4), (dtype, flags, worst)
        gaps = [float((a - b).abs().max()) for a, b in zip(half, expected, strict=True) if a.numel()]
        assert max(gaps, default=0) <= 0.02


def _adam_steps(
    module: ModuleType, device: str, dtype: torch.dtype, amsgrad: bool, maximize: bool, decoupled: bool
) -> tuple[list[Tensor], list[Tensor]]:
    numbers = {"beta1": 0.9, "beta2": 0.95, "clip_value": 1.5, "decoupled": decoupled}
    params = moved([p.detach() for p in random_tensors(0)], device)
    held = Adam(params, decoupled, amsgrad=amsgrad, maximize=maximize)
    held.steps = moved(held.steps, device)
    copies = moved(random_tensors(9, dtype), device) if dtype != torch.float32 else []
    for seed, flag in ((1, 0.0), (2, 1.0), (3, 0.0)):
        before = clones([*held.state(), *copies])
        lists = (held.params, moved(random_tensors(seed, dtype), device), held.averages, held.squares, held.maxima)
        scalars = [torch.tensor(number, device=device) for number in (0.5, 0.25, flag)]
        module.adam_(*lists, held.steps, copies, *scalars, **held.options, **numbers)
        assert same_bits(before, [*held.state(), *copies]) == bool(flag)
    return held.state(), copies


def quantize(device: str) -> None:
    """8 bits there and back with residuals, and few bits at random: the very bits."""
    for bad in (1.0, math.nan, math.inf, 3e38):
        own, stock = (_eight_bits(m, _odd_gradients(bad, device), device) for m in (quantize_cuda, quantize_definition))
        assert same_bits(own, stock), bad
        for bits in (8, 4, 2):
            own, stock = (_few_bits(m, _odd_gradients(bad, device), bits) for m in (quantize_cuda, quantize_definition))
            assert same_bits(own, stock), (bad, bits)


def _odd_gradients(bad: float, device: str) -> list[Tensor]:
    torch.manual_seed(1)
    image = torch.randn(4, 8, 3, 3).to(memory_format=torch.channels_last) * 1e-3
    some = [torch.randn(3, 300), torch.randn(0), image, torch.zeros(513), torch.full((3,), -0.0)]
    some += [torch.randn(512) * 1e-33, torch.randn(511) * 1e36, torch.randn(())]
    some[0][0, 3] = bad
    return moved(some, device)


def _eight_bits(module: ModuleType, kept: list[Tensor], device: str) -> list[Tensor]:
    overflow = torch.zeros((), device=device)
    residuals = [g * 1e-3 for g in _odd_gradients(1.0, device)]
    wire = module.quantize_(kept, residuals, overflow, torch.tensor(0.3, device=device), 3)
    sums = clones(kept)
    module.dequantize_(torch.cat([wire, wire.roll(516), wire]), sums, 3, torch.tensor(3.3, device=device))
    results = [wire, overflow, *clones(kept), *sums]
    results += [module.requantize_(torch.cat([part] * 3), kept, rank, 3) for rank, part in enumerate(wire.chunk(3))]
    return [*results, *kept]


def _few_bits(module: ModuleType, some: list[Tensor], bits: int) -> list[Tensor]:
    overflow, quarter = torch.zeros_like(some[-1]), torch.full_like(some[-1], 0.25)
    some[0], some[2] = some[0].half(), some[2].half()
    wire = module.qsgd(some, overflow, quarter, bits, 2, 7 + 2**40, 5, 1)
    sums = clones(some)
    module.dequantize_qsgd_(torch.cat([wire, wire]), sums, 2, bits, None)
    return [wire, overflow, *sums]


def sparsify(device: str) -> None:
    """The largest elements, by count and threshold, with momentum and odd layouts: the very bits."""
    if device == "cpu":  # the interpreter is slow by the tile, not by the element
        sparsify_cuda.PIECE_ELEMENTS, sparsify_cuda.TILE_ELEMENTS = 1 << 14, 1 << 13
    sizes, counts = (70_000, 0, 1, 900), [700, 1, 1, 200]
    for values, threshold in ((denormal, None), (few_values, None), (half_zeros, None), (heavy_tail, 3.0)):
        generator = torch.Generator().manual_seed(2)
        drawn = [values(size, generator) for size in sizes]
        residuals = moved([torch.randn(g.shape, generator=generator).round() * (g != 0) for g in drawn], device)
        gradients, third = moved(drawn, device), torch.tensor(1 / 3, device=device)
        wire, *_ = _both("sparsify_", gradients, [residuals], third, counts, threshold)
        placed = [[torch.full_like(g, math.nan) for g in gradients] for _ in range(2)]
        for module, result in zip((sparsify_cuda, sparsify_definition), placed, strict=True):
            module.desparsify_(torch.cat([wire, wire]), result, 2, counts, torch.tensor(3.7, device=device))
        assert same_bits(*placed)
    _both("sparsify_momentum_", gradients, [residuals, clones(gradients)], None, counts, 0.9)
    _odd_layouts(device)
    for bad in (math.inf, math.nan):
        gradients = moved([torch.randn(900), torch.full((500,), bad)], device)
        flag = torch.zeros((), device=device)
        wire = sparsify_cuda.sparsify_(gradients, [], flag, None, [90, 50], None)
        sparsify_cuda.desparsify_(wire, gradients, 1, [90, 50], None)
        assert flag == 1


def _odd_layouts(device: str) -> None:
    image = torch.randn(4, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    odd = [image.to(device), torch.randn(30, 40, device=device).t(), torch.randn(60, device=device)[::2]]
    odd.append(torch.randn((), device=device))
    _both("sparsify_", odd, [[torch.randn(g.shape, device=device) for g in odd]], None, [50, 60, 3, 1], None)
    _both("sparsify_", odd, [[]], None, [50, 60, 3, 1], None)


def _both(name: str, gradients: list[Tensor], states: list[list[Tensor]], *arguments: Any) -> list[Tensor]:
    results = []
    for module in (sparsify_cuda, sparsify_definition):
        mine, flag = clones(gradients), torch.zeros((), device=gradients[0].device)
        result = getattr(module, name)(mine, *states, flag, *arguments)
        wire, more = result if isinstance(result, tuple) else (result, [])
        assert flag == 0
        results.append([wire, *mine, *more])
    assert same_bits(*results), (name, arguments)
    return results[0]


CHECKS: dict[str, Callable[[str], None]] = {"norm": norm, "adam": adam, "quantize": quantize, "sparsify": sparsify}

if __name__ == "__main__":
    CHECKS[sys.argv[1]]("cpu")

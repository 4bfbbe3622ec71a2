"""The CUDA kernels that send the largest elements, under Triton's interpreter, in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import math, torch
from graphopt.kernels import own_cuda_sparsify as own, stock_sparsify as stock
from kernels.tensors import clones, same_bits
from kernels.test_sparsify import denormal, few_values, half_zeros, heavy_tail
own.PIECE_ELEMENTS, own.TILE_ELEMENTS = 1 << 14, 1 << 13  # the interpreter is slow by the tile, not by the element

def both(name, gradients, states, *arguments):
    results = []
    for module in (own, stock):
        mine, flag = clones(gradients), torch.zeros(())
        result = getattr(module, name)(mine, *states, flag, *arguments)
        wire, moved = result if isinstance(result, tuple) else (result, [])
        assert flag == 0
        results.append([wire, *mine, *moved])
    assert same_bits(*results), (name, arguments)
    return results[0]

sizes, counts = (70_000, 0, 1, 900), [700, 1, 1, 200]
for values, threshold in ((denormal, None), (few_values, None), (half_zeros, None), (heavy_tail, 3.0)):
    generator = torch.Generator().manual_seed(2)
    gradients = [values(size, generator) for size in sizes]
    residuals = [torch.randn(g.shape, generator=generator).round() * (g != 0) for g in gradients]
    wire, *_ = both("sparsify_", gradients, [residuals], torch.tensor(1 / 3), counts, threshold)
    placed = [[torch.full_like(g, math.nan) for g in gradients] for _ in range(2)]
    for module, result in zip((own, stock), placed):
        module.desparsify_(torch.cat([wire, wire]), result, 2, counts, torch.tensor(3.7))
    assert same_bits(*placed)
both("sparsify_momentum_", gradients, [residuals, clones(gradients)], None, counts, 0.9)

image = torch.randn(4, 3, 8, 8).contiguous(memory_format=torch.channels_last)
odd = [image, torch.randn(30, 40).t(), torch.randn(60)[::2], torch.randn(())]
both("sparsify_", odd, [[torch.randn(g.shape) for g in odd]], None, [50, 60, 3, 1], None)
both("sparsify_", odd, [[]], None, [50, 60, 3, 1], None)

for bad in (math.inf, math.nan):
    gradients, flag = [torch.randn(900), torch.full((500,), bad)], torch.zeros(())
    wire = own.sparsify_(gradients, [], flag, None, [90, 50], None)
    own.desparsify_(wire, gradients, 1, [90, 50], None)
    assert flag == 1
print("right")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
def test_triton_kernels_are_the_stock_ones_bit_for_bit() -> None:
    path = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True)
    assert done.stdout == "right\n", done.stderr

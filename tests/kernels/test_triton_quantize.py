"""The quantizing CUDA kernels, on CPU tensors under Triton's interpreter; a process of its own, as for the others."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import math, torch
from graphopt.kernels import own_cuda_qsgd, own_cuda_quantize, stock_qsgd, stock_quantize
from kernels.tensors import clones, same_bits

def gradients(bad):
    torch.manual_seed(1)
    some = [
        torch.randn(3, 300), torch.randn(0), torch.randn(4, 8, 3, 3).to(memory_format=torch.channels_last) * 1e-3,
        torch.zeros(513), torch.full((3,), -0.0), torch.randn(512) * 1e-33, torch.randn(511) * 1e36, torch.randn(()),
    ]
    some[0][0, 3] = bad
    return some

def eight_bits(module, bad):
    kept, overflow = gradients(bad), torch.zeros(())
    residuals = [g * 1e-3 for g in gradients(1.0)]
    wire = module.quantize_(kept, residuals, overflow, torch.tensor(0.3), 3)
    sums = clones(kept)
    module.dequantize_(torch.cat([wire, wire.roll(516), wire]), sums, 3, torch.tensor(3.3))
    results = [wire, overflow, *clones(kept), *sums]
    results += [module.requantize_(torch.cat([part] * 3), kept, rank, 3) for rank, part in enumerate(wire.chunk(3))]
    return [*results, *kept]

def few_bits(module, bad, bits):
    some, overflow = gradients(bad), torch.zeros(())
    some[0], some[2] = some[0].half(), some[2].half()
    wire = module.qsgd(some, overflow, torch.tensor(0.25), bits, 2, 7 + 2**40, 5, 1)
    sums = clones(some)
    module.dequantize_qsgd_(torch.cat([wire, wire]), sums, 2, bits, None)
    return [wire, overflow, *sums]

for bad in (1.0, math.nan, math.inf, 3e38):
    assert same_bits(eight_bits(own_cuda_quantize, bad), eight_bits(stock_quantize, bad)), bad
    for bits in (8, 4, 2):
        assert same_bits(few_bits(own_cuda_qsgd, bad, bits), few_bits(stock_qsgd, bad, bits)), (bad, bits)
print("right")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
def test_triton_kernels_have_the_stock_bits() -> None:
    path = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True)
    assert done.stdout == "right\n", done.stderr

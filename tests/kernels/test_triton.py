"""The CUDA kernels, on CPU tensors under Triton's interpreter; a process of its own, as it is chosen at import."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import math, torch
from graphopt.kernels import own_cuda, stock_norm, stock_update
from kernels.tensors import Adam, clones, random_tensors, same_bits, ulps
own_cuda.PIECE_ELEMENTS, own_cuda.BLOCK_ELEMENTS = 2048, 1024

for dtypes in ((torch.float32,), (torch.float16, torch.bfloat16, torch.float32)):
    gradients = [t for seed, dtype in enumerate(dtypes) for t in random_tensors(seed, dtype)]
    for p in (1.0, 2.0, 3.0, math.inf, 0.5):
        norm, found = own_cuda.gradient_norm(gradients, p)
        assert ulps(norm, stock_norm.gradient_norm(gradients, p)[0]) < 40 and found == 0, (dtypes, p)
        for bad in (math.inf, math.nan):
            norm, found = own_cuda.gradient_norm([*gradients, torch.tensor([1.0, bad])], p)
            assert found == 1 and not norm.isfinite(), (p, bad)
assert own_cuda.gradient_norm([torch.full((9,), 1e25)], 2.0)[0] == 3e25
assert own_cuda.gradient_norm([torch.full((4,), 3e38)], 2.0) == (math.inf, 0)

numbers = {"beta1": 0.9, "beta2": 0.95, "clip_value": 1.5}
def run(module, dtype, amsgrad, maximize, decoupled):
    adam = Adam([p.detach() for p in random_tensors(0)], decoupled, amsgrad=amsgrad, maximize=maximize)
    copies = random_tensors(9, dtype) if dtype != torch.float32 else []
    for seed, flag in ((1, 0.0), (2, 1.0), (3, 0.0)):
        before = clones([*adam.state(), *copies])
        module.adam_(
            adam.params, random_tensors(seed, dtype), adam.averages, adam.squares, adam.maxima, adam.steps, copies,
            torch.tensor(0.5), torch.tensor(0.25), torch.tensor(flag),
            decoupled=decoupled, **adam.options, **numbers,
        )
        assert same_bits(before, [*adam.state(), *copies]) == bool(flag)
    return adam.state(), copies

for dtype, *flags in (
    (torch.float32, False, False, True), (torch.float16, True, False, False), (torch.bfloat16, False, True, True)
):
    (own, half), (stock, expected) = (run(module, dtype, *flags) for module in (own_cuda, stock_update))
    assert max(map(ulps, own, stock)) <= 2, (dtype, flags)
    assert max((float((a - b).abs().max()) for a, b in zip(half, expected) if a.numel()), default=0) <= 0.02
print("right")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
def test_triton_kernels_are_the_stock_ones_within_ulps() -> None:
    path = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True)
    assert done.stdout == "right\n", done.stderr

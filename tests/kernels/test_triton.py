"""The CUDA kernels, on CPU tensors under Triton's interpreter; a process for each, as it is chosen at import."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")


def run_python(*arguments: str, **environment: str) -> None:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    settings = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run([sys.executable, *arguments], env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("check", ["norm", "adam", "quantize", "sparsify"])
def test_triton_kernels_are_the_stock_ones(check: str) -> None:
    run_python("-m", "tests.support.triton_checks", check, TRITON_INTERPRET="1")


def test_triton_kernels_compile_for_a_gpu_that_is_not_here() -> None:
    """The interpreter takes names, types and shapes that the compiler does not."""
    run_python("-m", "tests.support.triton_compiles")

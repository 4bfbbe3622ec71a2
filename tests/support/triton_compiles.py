"""Compile every Triton kernel to machine code of an H100, without one: `python -m tests.support.triton_compiles`.

The checks of `triton_checks` call the kernels, whose launches compile here and run nothing; what is then not as
expected is no fault.
"""

from __future__ import annotations

import contextlib
import tempfile
from typing import Any

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from graphopt.kernels.quantize import cuda as quantize_cuda
from graphopt.kernels.quantize import definition as quantize_definition
from graphopt.kernels.sparsify import cuda as sparsify_cuda
from graphopt.kernels.sparsify import definition as sparsify_definition
from tests.support import triton_checks
from tests.support.tensors import clones


class NoDevice:
    """Stands in for a driver, as far as the compiler asks it."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int = 0) -> int:
        return 0


def main() -> None:
    """Raises where a kernel does not compile, or is called by no check."""
    compiled: set[str] = set()
    launch = JITFunction.run

    def compile_only(self: JITFunction, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        del warmup
        launch(self, *arguments, grid=grid, warmup=True, **options)
        compiled.add(self.__name__)

    driver.set_active(NoDevice())
    JITFunction.run = compile_only
    with tempfile.TemporaryDirectory() as folder:
        knobs.cache.dir = folder
        for check in triton_checks.CHECKS.values():
            with contextlib.suppress(AssertionError):
                check("cpu")
        _receive()
    expected = {"sum_of_powers_kernel", "adam_kernel", "quantize_kernel", "requantize_kernel", "dequantize_kernel"}
    expected |= {"qsgd_kernel", "sum_kernel", "digit_kernel", "tally_kernel", "send_kernel", "place_kernel"}
    assert compiled == expected, compiled ^ expected


def _receive() -> None:
    """What the checks do not come to, as what they send is not written; seeds and draws that Triton treats apart."""
    some = [torch.randn(3, 300), torch.randn(900).half()]
    flag = torch.zeros(())
    wire = quantize_definition.quantize_(clones(some[:1]), [], flag, None, 3)
    quantize_cuda.requantize_(wire, some[:1], 0, 3)
    for seed, draw in ((0, 0), (1, 1), (2**63, 2**31 + 5), (2**32 - 1, 16)):
        for bits in (8, 4, 2):
            sent = quantize_cuda.qsgd(some, flag, None, bits, 2, seed, draw, 1)
            quantize_cuda.dequantize_qsgd_(torch.cat([sent, sent]), some, 2, bits, None)
    largest = sparsify_definition.sparsify_(some[:1], [], flag, None, [90], None)
    sparsify_cuda.desparsify_(largest, some[:1], 1, [90], None)
    sparsify_cuda.sparsify_momentum_(some[:1], [some[0]], [some[0]], flag, None, [90], 0.9)


if __name__ == "__main__":
    main()

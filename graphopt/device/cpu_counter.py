"""How many bytes torch's CPU allocator has handed out, counted at each allocation and free, over all threads.

The counter is C++ that stands in front of torch's own allocator for the rest of the process's life; blocks are
aligned as before and reported to torch's profiler as before. It needs a C++ compiler, once. The alternative, the
profiler's allocator events, costs microseconds an event, cannot run beside a profiler of the user's, and must be
stopped before what it measured can be read.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from graphopt.base.compiler import Recipe, load_library
from graphopt.base.errors import CompileError

logger = logging.getLogger("graphopt")


@dataclass(frozen=True)
class CpuCounter:
    """What is allocated now, and the most that was since that was taken; taking it holds the GIL, which is faster."""

    live_bytes: ctypes.c_int64
    peak_bytes: ctypes.c_int64
    take_peak_bytes: Callable[[], int]


@cache
def cpu_counter() -> CpuCounter | None:
    """The counter, in front of torch's allocator; None, and a line in the log, where it cannot be there.

    That is where there is no compiler, or where somebody else's allocator is in the place of torch's.
    """
    torch_folder = Path(torch.__file__).parent
    flags = ("-std=c++17", "-O2", f"-I{torch_folder / 'include'}", f"-D_GLIBCXX_USE_CXX11_ABI={int(_cxx11_abi())}")
    links = ("-Wl,--no-as-needed", f"-L{torch_folder / 'lib'}", "-lc10")
    source = Path(__file__).with_name("cpu_counter.cpp")
    try:
        library = load_library(Recipe("cpu-counter", (source,), flags, links, torch.__version__))
    except CompileError as error:
        logger.warning("memory is not measured on the CPU: %s", str(error).splitlines()[0])
        return None
    if not library.graphopt_count_cpu_memory():
        logger.warning("memory is not measured on the CPU: another allocator stands in the place of torch's own")
        return None
    live, peak = (ctypes.c_int64.in_dll(library, f"graphopt_cpu_{name}") for name in ("live", "peak"))
    return CpuCounter(live, peak, ctypes.PYFUNCTYPE(ctypes.c_int64)(("graphopt_take_cpu_peak", library)))


def _cxx11_abi() -> bool:
    return bool(torch.compiled_with_cxx11_abi())

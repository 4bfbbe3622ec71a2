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
    """Opens and closes windows, by number. A window's functions tell what is allocated now, the most since that was
    taken, and take it.
    """

    open_window: Callable[[], int]
    close_window: Callable[[int], None]
    function: Callable[[int, int], Callable[[], int]]

    def functions(self, window: int) -> tuple[Callable[[], int], Callable[[], int], Callable[[], int]]:
        """What is allocated now, the most since that was taken, and the same taken."""
        return self.function(window, 0), self.function(window, 1), self.function(window, 2)


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
    return CpuCounter(
        ctypes.PYFUNCTYPE(ctypes.c_long)(("graphopt_open_cpu_window", library)),
        ctypes.PYFUNCTYPE(None, ctypes.c_long)(("graphopt_close_cpu_window", library)),
        ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object, ctypes.c_int)(("graphopt_cpu_function", library)),
    )


def _cxx11_abi() -> bool:
    return bool(torch.compiled_with_cxx11_abi())

"""Where our own kernels can run.

The CPU's are plain C++ with a C interface, so that they compile in seconds and know nothing of torch's.
"""

from __future__ import annotations

import ctypes
import warnings
from functools import cache
from pathlib import Path

import torch
from torch.utils._python_dispatch import _disable_current_modes

from graphopt.base.compiler import Recipe, load_library
from graphopt.base.errors import CompileError, GraphoptError
from graphopt.device.snapshot import generators_kept
from graphopt.kernels.choice import chosen

#: Where the C++ lies: what families share, and each of them.
_FOLDERS = tuple(Path(__file__).parent / name for name in ("", "messages", "quantize", "sparsify", "tail"))
_VECTORS = {
    "AVX512": ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx2", "-mfma", "-mf16c"),
    "AVX2": ("-mavx2", "-mfma", "-mf16c"),
}


class KernelBuildError(GraphoptError):
    """Own kernels were asked for by name and cannot be built here."""


@cache
def cpu_builds() -> bool:
    """Whether the kernels can be compiled here; where not, it is said once, in a warning."""
    try:
        cpu_library()
    except KernelBuildError as error:
        warnings.warn(f"{str(error).splitlines()[0]}; torch's own ops stand in for them", stacklevel=2)
        return False
    return True


def own_cpu_kernels(device: torch.device) -> bool:
    """Whether our compiled kernels are what runs on a device."""
    return device.type == "cpu" and (chosen() == "own" or (chosen() == "auto" and cpu_builds()))


@cache
@generators_kept()
def triton_builds(device: torch.device) -> bool:
    """Whether Triton is there and compiles a kernel for a CUDA device; where not, it is said once, in a warning."""
    try:
        from graphopt.kernels.tail import cuda

        with _disable_current_modes():
            norm, _ = cuda.gradient_norm([torch.ones(4, device=device)], 2.0)
            return float(norm) == 2.0
    except Exception as error:  # whatever a compiler or a driver may raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        warnings.warn(f"Triton's kernels cannot be built here: {reason}; torch's own ops stand in", stacklevel=2)
        return False


def own_cuda_kernels(device: torch.device) -> bool:
    """Whether our Triton kernels are what runs on a device.

    Where they can be built, as torch's ops with the same result took 2.5 to 49 times as long for compression on an
    H200, and twice as long for the end of a step in half precision.
    """
    return device.type == "cuda" and (chosen() == "own" or (chosen() == "auto" and triton_builds(device)))


def cpu_sources() -> tuple[Path, ...]:
    """The C++ of all families and the headers that they share, always in the same order."""
    return tuple(path for folder in _FOLDERS for path in sorted(folder.iterdir()) if path.suffix in (".cpp", ".h"))


@cache
@generators_kept()
def cpu_library() -> ctypes.CDLL:
    """The kernels, compiled where they are not in the cache yet; raises KernelBuildError."""
    flags = ["-std=c++17", "-O3", *_VECTORS.get(torch.backends.cpu.get_cpu_capability(), ())]
    flags += ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-fopenmp", "-Wno-psabi"]
    # without -lgomp the symbols are those of torch's own library, so that both share one pool of threads
    link_flags = ("-Wl,--no-as-needed", f"-L{Path(torch.__file__).parent / 'lib'}", "-ltorch_cpu")
    try:
        library = load_library(Recipe("kernels", cpu_sources(), tuple(flags), link_flags, torch.__version__))
    except CompileError as error:
        raise KernelBuildError(f"the CPU kernels cannot be built here: {error}") from error
    library.graphopt_sum_of_powers.restype = ctypes.c_double
    return library

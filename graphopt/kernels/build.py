"""Where our own kernels can run. The CPU's machine code: compiled once, by the machine's own compiler, kept on disk.

That is plain C++ with a C interface, so that it compiles in seconds and knows nothing of torch's; torch's
extension loader finds the compiler and the cache (`TORCH_EXTENSIONS_DIR`).
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import warnings
from functools import cache
from pathlib import Path

import torch
from torch.utils._python_dispatch import _disable_current_modes

from graphopt.base.errors import GraphoptError
from graphopt.kernels.choice import chosen

_FOLDER = Path(__file__).parent / "cpu"
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
def triton_builds(device: torch.device) -> bool:
    """Whether Triton is there and compiles a kernel for a CUDA device; where not, it is said once, in a warning."""
    try:
        from graphopt.kernels.tail import own_cuda

        with _disable_current_modes():
            norm, _ = own_cuda.gradient_norm([torch.ones(4, device=device)], 2.0)
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


@cache
def cpu_library() -> ctypes.CDLL:
    """The kernels, compiled where they are not in the cache yet; raises KernelBuildError."""
    # without -lgomp the symbols are those of torch's own library, so that both share one pool of threads
    flags = ["-std=c++17", "-O3", *_VECTORS.get(torch.backends.cpu.get_cpu_capability(), ())]
    flags += ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-fopenmp", "-Wno-psabi"]
    sources = sorted(path for path in _FOLDER.iterdir() if path.suffix in (".cpp", ".h"))
    text = "".join(path.read_text(encoding="utf-8") for path in sources) + " ".join(flags) + torch.__version__
    name = f"graphopt_{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    try:
        library = ctypes.CDLL(_built(name, [str(path) for path in sources if path.suffix == ".cpp"], flags))
    except (OSError, RuntimeError, ImportError, subprocess.SubprocessError) as error:
        raise KernelBuildError(f"the CPU kernels cannot be built here: {error}") from error
    library.graphopt_sum_of_powers.restype = ctypes.c_double
    return library


def _built(name: str, sources: list[str], flags: list[str]) -> str:
    """The library's path. One process compiles while others wait; one that is killed leaves no lock behind."""
    import fcntl

    from torch.utils import cpp_extension

    if shutil.which(cpp_extension.get_cxx_compiler()) is None:
        raise OSError(f"no compiler {cpp_extension.get_cxx_compiler()!r}")
    folder = Path(cpp_extension._get_build_directory(name, verbose=False))
    with (folder / "building").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        (folder / "lock").unlink(missing_ok=True)  # torch's own lock outlives the process that took it
        library = folder / f"{name}.so"
        if not library.exists():
            cpp_extension.load(
                name,
                sources,
                extra_cflags=flags,
                extra_ldflags=["-Wl,--no-as-needed"],
                build_directory=os.fspath(folder),
                is_python_module=False,
            )
    return os.fspath(library)

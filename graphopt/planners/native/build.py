"""The machine code: compiled once by the machine's own compiler, and kept in the user's cache."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from graphopt.base.cache_directory import cache_directory

_SOURCES = Path(__file__).parent / "cpp"
#: Sums and products as Python makes them: none fused, none folded by rules of the compiler's own.
_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-ffp-contract=off", "-fno-builtin-pow")
_COMPILERS = ("c++", "g++", "clang++")
_wanted = True


@contextmanager
def without_native() -> Iterator[None]:
    """Inside, the Python of the planners runs. Holds for the whole process, not for a thread."""
    global _wanted
    before, _wanted = _wanted, False
    try:
        yield
    finally:
        _wanted = before


def library() -> ctypes.CDLL | None:
    """The machine code; None where it cannot be compiled, which is said once, or is not wanted."""
    return _library() if _wanted else None


@cache
def _library() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(str(_compiled()))
    except (OSError, subprocess.SubprocessError) as error:
        output = getattr(error, "stderr", None) or ""
        warnings.warn(
            f"the planners' inner loops cannot be compiled here, so planning takes several times as long: {error}"
            f"{output and chr(10)}{output}",
            stacklevel=2,
        )
        return None


def _compiled() -> Path:
    """Where the library lies, after it was compiled if need be; two processes may do so at once."""
    compiler = _compiler()
    sources = sorted(_SOURCES.iterdir())
    text = "".join(path.read_text(encoding="utf-8") for path in sources)
    key = hashlib.sha256("\0".join([text, *_FLAGS, compiler, platform.machine()]).encode()).hexdigest()[:16]
    path = cache_directory() / f"planners_{key}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = _compile(compiler, [p for p in sources if p.suffix == ".cpp"], Path(folder))
            made.replace(path)
    return path


def _compiler() -> str:
    named = os.environ.get("CXX")
    found = next((path for name in ((named,) if named else _COMPILERS) if (path := shutil.which(name))), None)
    if found is None:
        raise OSError(f"no C++ compiler ({named or ', '.join(_COMPILERS)})")
    return found


def _compile(compiler: str, sources: Sequence[Path], folder: Path) -> Path:
    """One process for each source, as that is what takes the time; raises CalledProcessError with what it printed."""
    objects = [folder / f"{source.stem}.o" for source in sources]
    running = [
        subprocess.Popen([compiler, *_FLAGS, "-c", str(source), "-o", str(made)], stderr=subprocess.PIPE, text=True)
        for source, made in zip(sources, objects, strict=True)
    ]
    printed = [process.communicate()[1] for process in running]
    for process, text in zip(running, printed, strict=True):
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, compiler, stderr=text)
    return _link(compiler, objects, folder / "library.so")


def _link(compiler: str, objects: Sequence[Path], library: Path) -> Path:
    """With the compiler's own library of C++ inside where it has one: a process may have loaded an older one."""
    command = [compiler, "-shared", *map(str, objects), "-o", str(library)]
    alone = subprocess.run([*command, "-static-libstdc++", "-static-libgcc"], capture_output=True)
    if alone.returncode:
        subprocess.run(command, check=True, capture_output=True, text=True)
    return library

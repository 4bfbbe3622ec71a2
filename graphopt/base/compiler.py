"""Machine code: compiled once by the machine's own compiler, kept in the user's cache, checked before it is loaded."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from graphopt.base.cache_directory import cache_directory, is_private, private_directory, temporary_directory
from graphopt.base.errors import CompileError
from graphopt.base.progress import phase

logger = logging.getLogger("graphopt")

_COMPILERS = ("c++", "g++", "clang++")


@dataclass(frozen=True)
class Recipe:
    """What a library is made of.

    `name` is the beginning of its file's name. `sources` are all files whose text matters; those that end in `.cpp`
    are compiled, with the folders of all of them to find headers in. `flags` go to the compiler and `link_flags` to
    the linker. `made_for` is whatever else the machine code depends on, such as the version of a library that it is
    linked to. Equal texts, flags and `made_for` are one library, wherever the sources lie.
    """

    name: str
    sources: tuple[Path, ...]
    flags: tuple[str, ...]
    link_flags: tuple[str, ...] = ()
    made_for: str = ""


def load_library(recipe: Recipe, compiler: str | None = None) -> ctypes.CDLL:
    """The library that a recipe makes, loaded: from the cache where it is whole there, else compiled and kept.

    `compiler` is a program's path; None is `find_compiler()`'s. Each call reads the whole file and compares its SHA-256
    with the one in its name, so that one that was cut short or changed is made again: loading a library that is shorter
    than its own tables say kills the process. Processes that want to compile at once wait for one to have done it; one
    that is killed leaves no lock, and nothing that would be taken for a library. Raises CompileError where there is no
    compiler, with what the compiler said where it fails, and where the library cannot be loaded.
    """
    try:
        compiler = compiler or find_compiler()
        name = f"{recipe.name}-{_key(recipe, compiler)}"
        with private_directory() as folder:
            path = _whole(folder, name)
            if path is None:
                path = _made(recipe, compiler, folder, name)
            return ctypes.CDLL(os.fspath(path))
    except subprocess.CalledProcessError as error:
        raise CompileError(f"{error}\n{error.stderr}".rstrip()) from error
    except OSError as error:
        raise CompileError(str(error)) from error


def _made(recipe: Recipe, compiler: str, folder: Path, name: str) -> Path:
    """The library compiled, by this process or by another that was first; it takes seconds, so that it is told of."""
    began = time.monotonic()
    with phase(f"compiling C++ once ({recipe.name})", shown_alone=True), _one_at_a_time(folder):
        path = _whole(folder, name) or _kept(folder, name, _compiled(recipe, compiler))
    seconds = time.monotonic() - began
    logger.info("compiled %s with %s in %.1f s, kept in %s", recipe.name, compiler, seconds, cache_directory())
    return path


def find_compiler() -> str:
    """`$CXX`, or the first of c++, g++ and clang++ that there is; raises CompileError where there is none."""
    named = os.environ.get("CXX")
    found = next((path for name in ((named,) if named else _COMPILERS) if (path := shutil.which(name))), None)
    if found is None:
        raise CompileError(f"no C++ compiler ({named or ', '.join(_COMPILERS)})")
    return found


def _key(recipe: Recipe, compiler: str) -> str:
    texts = [f"{path.name}\0{path.read_text(encoding='utf-8')}" for path in recipe.sources]
    platforms = (compiler, sys.platform, platform.machine())
    parts = [*texts, "", *recipe.flags, "", *recipe.link_flags, recipe.made_for, *platforms]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _whole(folder: Path, name: str) -> Path | None:
    """The library in a folder, if its content is what its name says; any other is taken away."""
    for path in sorted(folder.glob(f"{name}-*.so")):
        with suppress(OSError):
            with path.open("rb") as file:
                private, digest = is_private(os.fstat(file.fileno())), _digest(file.read())
            if private and path.name == f"{name}-{digest}.so":
                return path
            path.unlink()
    return None


def _kept(folder: Path, name: str, content: bytes) -> Path:
    """Where the library lies now; in a temporary folder where this one cannot be written to."""
    try:
        return _write(folder, f"{name}-{_digest(content)}.so", content)
    except OSError as error:
        elsewhere = temporary_directory(f"{cache_directory()} cannot be written to ({error.strerror or error})")
        return _write(elsewhere, f"{name}-{_digest(content)}.so", content)


def _write(folder: Path, name: str, content: bytes) -> Path:
    """Aside, to the disk, then into place; a name says the content, so that it does not matter who comes last."""
    descriptor, draft = tempfile.mkstemp(prefix=f".{name}.", suffix=".part", dir=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        Path(draft).replace(folder / name)
    except OSError:
        Path(draft).unlink(missing_ok=True)
        raise
    return folder / name


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """A lock on the folder itself, which goes with the process. Where there is none, two may compile the same."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _compiled(recipe: Recipe, compiler: str) -> bytes:
    """One process for each source, as that is what takes the time; raises CalledProcessError with what it printed."""
    found = dict.fromkeys(f"-I{path.parent}" for path in recipe.sources)
    command = [compiler, *recipe.flags, "-fPIC", *found]
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        sources = [path for path in recipe.sources if path.suffix == ".cpp"]
        objects = [Path(folder, f"{number}.o") for number in range(len(sources))]
        running = [
            subprocess.Popen([*command, "-c", str(source), "-o", str(made)], stderr=subprocess.PIPE, text=True)
            for source, made in zip(sources, objects, strict=True)
        ]
        printed = [process.communicate()[1] for process in running]
        for process, text in zip(running, printed, strict=True):
            if process.returncode:
                raise subprocess.CalledProcessError(process.returncode, compiler, stderr=text)
        return _linked([compiler, "-shared", *map(str, objects), *recipe.link_flags], Path(folder, "library.so"))


def _linked(command: Sequence[str], library: Path) -> bytes:
    """With the compiler's own library of C++ inside where it has one: a process may have loaded an older one."""
    command = [*command, "-o", str(library)]
    alone = subprocess.run([*command, "-static-libstdc++", "-static-libgcc"], capture_output=True)
    if alone.returncode:
        subprocess.run(command, check=True, capture_output=True, text=True)
    return library.read_bytes()

"""Versions, the compiler, the cache folder and variables of the environment: what can be looked at without PyTorch."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from graphopt import __version__
from graphopt.base.cache_directory import cache_directory, private_directory
from graphopt.base.compiler import find_compiler
from graphopt.base.errors import CompileError, UsageError
from graphopt.base.units import format_bytes
from graphopt.cli.doctor.finding import Finding

#: What these dependencies are for, beside those that nothing works without.
_EXTRAS = {"exact": "the planner `exact`", "onnx": "ONNX files", "loops": "training loops of other libraries"}
_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)\s*(?:>=\s*(?P<least>[\d.]+))?.*?(?:extra == ['\"](?P<extra>\w+)['\"])?")
#: Of the environment, that graphopt itself reads.
OWN_VARIABLES = ("GRAPHOPT_CACHE_DIR", "GRAPHOPT_DEBUG", "GRAPHOPT_MEM_BUDGET")
_OTHERS = (
    *("NO_COLOR", "CXX", "XDG_CACHE_HOME", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "TORCH_TRACE"),
    *("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"),
)
_PROBE = 'extern "C" int graphopt_probe() { return 42; }\n'
_PROBE_SECONDS = 60.0


def versions() -> Iterator[Finding]:
    """Python, graphopt, what it needs, and what it can use; raises PackageNotFoundError where it is not installed."""
    yield Finding("versions", "Python", f"{platform.python_version()} ({sys.executable}), {platform.platform()}")
    yield Finding("versions", "graphopt", __version__)
    missing: dict[str, list[str]] = {}
    for line in metadata.requires("graphopt") or ():
        found = _REQUIREMENT.fullmatch(line)
        if found is None or found["extra"] not in (None, *_EXTRAS):
            continue
        name, extra = found["name"], found["extra"]
        version = _version(name)
        if version is None and extra:
            missing.setdefault(extra, []).append(name)
        else:
            yield _judged(name, version, found["least"] or "0", extra)
    for extra, names in missing.items():
        text = f"{', '.join(names)} not installed, for {_EXTRAS[extra]}: pip install 'graphopt[{extra}]'"
        yield Finding("versions", f"[{extra}]", text)


def _judged(name: str, version: str | None, least: str, extra: str | None) -> Finding:
    remedy = f"pip install '{name}>={least}'"
    if version is None:
        return Finding("versions", name, "", f"{name} is not installed", remedy)
    problem = f"{name} {version} is older than {least}" if _numbers(version) < _numbers(least) else ""
    return Finding("versions", name, f"{version} [{extra}]" if extra else version, problem, remedy if problem else "")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> list[int]:
    """`"2.13.0+cpu"` -> `[2, 13, 0]`."""
    return [int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3]]


def compiler() -> Iterator[Finding]:
    """The C++ compiler, which makes a library that is loaded from where graphopt's would be."""
    effect = "planning takes many times as long, and local search is left out"
    remedy = "install g++ or clang++, or name a working one with CXX"
    try:
        path = find_compiler()
    except CompileError as error:
        yield Finding("compiler", "C++", "", f"{error}: {effect}", remedy)
        return
    began = time.monotonic()
    try:
        about = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=_PROBE_SECONDS)
        _probe(path)
    except (OSError, subprocess.SubprocessError) as error:
        problem = f"{path} makes no library that can be loaded ({_reason(error)}): {effect}"
        yield Finding("compiler", "C++", path, problem, remedy)
        return
    first = next(iter(about.stdout.splitlines()), "it does not say its version")
    yield Finding("compiler", "C++", f"{path}: {first}; a small library in {time.monotonic() - began:.1f} s")


def _probe(path: str) -> None:
    """Compile, load and call a function; raises OSError or SubprocessError where one of it fails.

    It is loaded from where graphopt's libraries lie: a file system may allow no code.
    """
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        source, library = Path(folder, "probe.cpp"), Path(folder, "probe.so")
        source.write_text(_PROBE, encoding="utf-8")
        command = [path, "-std=c++17", "-shared", "-fPIC", str(source), "-o", str(library)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_PROBE_SECONDS)
        made = library.read_bytes()
    with private_directory() as private, tempfile.NamedTemporaryFile(dir=private, prefix=".probe.") as file:
        file.write(made)
        file.flush()
        if ctypes.CDLL(file.name).graphopt_probe() != 42:
            raise OSError("what it made gives another result")


def _reason(error: Exception) -> str:
    """The first line of what a compiler says that names an error, or the error itself."""
    said = [line for line in (getattr(error, "stderr", None) or "").splitlines() if line.strip()]
    return next((line for line in said if "error" in line), said[0] if said else str(error)).strip()


def cache_folder() -> Iterator[Finding]:
    """Where measured prices and compiled code are kept: the place, what is there, and whether it can be written to."""
    remedy = "name a folder of your own: GRAPHOPT_CACHE_DIR=/absolute/path"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            folder = cache_directory()
        except UsageError as error:
            yield Finding("cache", "folder", "", str(error), remedy)
            return
        with private_directory() as private:
            resolved = private.resolve()
            _try_to_write(private)
    text = f"{folder}, {_size_of(folder)}"
    if said:
        yield Finding("cache", "folder", text, str(said[0].message), remedy)
    elif resolved != folder.resolve():
        yield Finding("cache", "folder", f"{text}; others can write to it, so that what is compiled lies in {resolved}")
    else:
        yield Finding("cache", "folder", f"{text}, can be written to by this user alone")


def _try_to_write(folder: Path) -> None:
    """A file there; what cannot be kept is only said."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        warnings.warn(f"{folder.resolve()} cannot be written to ({error.strerror}): nothing is kept", stacklevel=2)


def _size_of(folder: Path) -> str:
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    return f"{format_bytes(sum(sizes))} in {len(sizes)} files"


def variables() -> Iterator[Finding]:
    """Variables of the environment that graphopt heeds, as far as they are set, and those that are misspelled."""
    for name in (*OWN_VARIABLES, *_OTHERS):
        if name in os.environ:
            yield Finding("environment", name, repr(os.environ[name]))
    for name in sorted(os.environ):
        if name.startswith("GRAPHOPT_") and name not in OWN_VARIABLES:
            remedy = f"unset it, or write one of {', '.join(OWN_VARIABLES)}"
            yield Finding("environment", name, repr(os.environ[name]), f"{name} is not heeded", remedy)

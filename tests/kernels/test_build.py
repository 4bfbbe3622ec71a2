"""Compiling the CPU kernels: once, under a lock, and never in the way of training."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from graphopt.kernels import build

CODE = """
import warnings
import torch
from graphopt import kernels
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        norm, _ = kernels.gradient_norm([torch.tensor([3.0, 4.0])], 2.0)
print(float(norm), *(w.message for w in caught))
"""


def start(folder: Path, **variables: str) -> subprocess.Popen[str]:
    """A process that runs one kernel, with a cache of its own; nothing but its own output is printed."""
    environment = os.environ | {"GRAPHOPT_CACHE_DIR": str(folder), "OMP_NUM_THREADS": "1"} | variables
    return subprocess.Popen(
        [sys.executable, "-c", CODE], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.slow
def test_two_processes_at_once_build_one_library_quietly_and_again_where_it_was_cut_short(tmp_path: Path) -> None:
    running = [start(tmp_path) for _ in range(2)]
    assert [process.communicate(timeout=120)[0] for process in running] == ["5.0\n"] * 2
    (library,) = tmp_path.glob("kernels-*.so")
    built, content = library.stat().st_mtime_ns, library.read_bytes()
    assert start(tmp_path).communicate(timeout=120)[0] == "5.0\n"
    assert library.stat().st_mtime_ns == built
    os.truncate(library, len(content) // 2)
    assert start(tmp_path).communicate(timeout=120)[0] == "5.0\n"
    assert library.read_bytes() == content


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_compiler_torchs_ops_stand_in_and_it_is_said_once(tmp_path: Path, compiler: str) -> None:
    printed = start(tmp_path, CXX=compiler).communicate(timeout=120)[0]
    assert printed.startswith("5.0 the CPU kernels cannot be built here")
    assert printed.count("cannot be built") == 1


def test_all_cpp_is_compiled_and_packed_into_the_wheel() -> None:
    folder = Path(build.__file__).parent
    found = {path for path in folder.rglob("*") if path.suffix in (".cpp", ".h")}
    lane = {folder / "offload" / "lane.cpp"}  # a library of its own, without torch
    assert found - lane == set(build.cpu_sources())
    metadata = pytest.importorskip("tomllib").loads((folder.parent.parent / "pyproject.toml").read_text("utf-8"))
    patterns = metadata["tool"]["setuptools"]["package-data"]["graphopt.kernels"]
    assert found == {path for pattern in patterns for path in folder.glob(pattern)}

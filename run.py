#!/usr/bin/env python3
"""One command on a bare machine: `python3 run.py demo`, `python3 run.py test`, `python3 run.py docs`, `... setup`.

Standard library only. Makes `.venv` beside this file, installs graphopt into it, and runs; for another version of
torch `.venv-VERSION`.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VERSION = re.compile(r"\d+(\.\d+)+")
USAGE = """usage: python3 run.py COMMAND [ARGUMENT ...]

  demo             train a small GPT-2 inside a third of the memory that eager takes
  test [--slow]    ruff, mypy and the tests, with --slow those too that CI leaves out (other arguments go to pytest)
  torch VERSION    all tests on another version of torch, as 2.14.1 (arguments go to pytest)
  docs             the documentation as a site, in build/site
  setup            make .venv and install graphopt into it, no more"""


class Environment:
    """A folder with Python, torch (as `constraints.txt` has it, or the version named), and graphopt."""

    def __init__(self, torch_version: str = "") -> None:
        self.torch_version = torch_version
        self.folder = ROOT / (f".venv-{torch_version}" if torch_version else ".venv")
        bin_folder = self.folder / ("Scripts" if os.name == "nt" else "bin")
        self.python = bin_folder / ("python.exe" if os.name == "nt" else "python")
        self.stamp = self.folder / "graphopt-stamp"


def main(arguments: list[str]) -> int:
    commands = {"demo": demo, "test": test, "torch": test_suite, "docs": docs, "setup": lambda *_: 0}
    name, *rest = arguments or [""]
    if name not in commands or (name == "torch" and not (rest and VERSION.fullmatch(rest[0]))):
        wants_help = bool(arguments) and arguments[0] in ("-h", "--help", "help")
        print(USAGE, file=sys.stdout if wants_help else sys.stderr)
        return 0 if wants_help else 2
    if sys.version_info < (3, 10):  # noqa: UP036 - whoever starts this may have any Python
        print(f"graphopt needs Python 3.10 or newer; this is {sys.version.split()[0]}", file=sys.stderr)
        return 1
    environment = Environment(rest.pop(0) if name == "torch" else "")
    try:
        setup(environment)
    except subprocess.CalledProcessError as error:
        print(f"setup failed (exit {error.returncode}): {' '.join(map(str, error.cmd))}", file=sys.stderr)
        return 1
    return commands[name](environment, rest)


def setup(environment: Environment) -> None:
    """Make the environment, unless the one that is there was made from the same files."""
    gpu = has_gpu()
    stamp, there = fingerprint(environment, gpu), environment.stamp
    if environment.python.exists() and there.exists() and there.read_text(encoding="utf-8") == stamp:
        return
    start = time.monotonic()
    print(
        f"Setting up {environment.folder} ({'with' if gpu else 'without'} CUDA); the first time takes some minutes.",
        flush=True,
    )
    pip = make_venv(environment)
    # A GPU machine takes whichever torch fits its driver; a CPU machine the one that is pinned.
    # Torch goes first and alone: with the extras beside it pip may settle on another one.
    version = environment.torch_version
    limits = [] if gpu or version else ["-c", str(ROOT / "constraints.txt")]
    run([*pip, "install", *limits, f"torch=={version}" if version else "torch"])
    run([*pip, "install", *limits, "-e", f"{ROOT}[dev]", *([f"torch=={version}"] if version else [])])
    there.write_text(stamp, encoding="utf-8")
    print(f"Ready after {time.monotonic() - start:.0f} s.", flush=True)


def make_venv(environment: Environment) -> list[object]:
    """Make the folder anew; returns the command that is its pip."""
    shutil.rmtree(environment.folder, ignore_errors=True)
    if subprocess.run([sys.executable, "-c", "import ensurepip"], capture_output=True).returncode == 0:
        run([sys.executable, "-m", "venv", environment.folder])
        return [environment.python, "-m", "pip", "--disable-pip-version-check"]
    # Debian and Ubuntu ship venv without ensurepip: let the outer pip install into it.
    run([sys.executable, "-m", "venv", "--without-pip", environment.folder])
    return [sys.executable, "-m", "pip", "--python", environment.python, "--disable-pip-version-check"]


def demo(environment: Environment, arguments: list[str]) -> int:
    return run([environment.python, "-m", "graphopt", "demo", *arguments], check=False)


def test(environment: Environment, arguments: list[str]) -> int:
    """All checks; pytest comes last so that its closing line is the last line."""
    python = environment.python
    checks: dict[str, list[object]] = {
        "ruff check": [python, "-m", "ruff", "check", "."],
        "ruff format": [python, "-m", "ruff", "format", "--check", "."],
        "mypy": [python, "-m", "mypy"],
    }
    failed = [name for name, command in checks.items() if run(command, check=False) != 0]
    if failed:
        print(f"FAILED: {', '.join(failed)} (the tests run nevertheless)", flush=True)
    return test_suite(environment, arguments) or int(bool(failed))


def test_suite(environment: Environment, arguments: list[str]) -> int:
    workers = min(8, cores())
    # Each worker gets its share of the cores; more threads than cores make torch crawl.
    variables = {"OMP_NUM_THREADS": str(max(1, cores() // workers))}
    spread = ("-n", str(workers), "--dist", "worksteal")  # tests take from milliseconds to a minute
    is_whole = "--slow" in arguments or bool(environment.torch_version)
    left_out = [f"not {mark}" for mark, out in (("gpu", not has_gpu()), ("slow", not is_whole)) if out]
    marked = ("-m", " and ".join(left_out)) if left_out else ()
    asked = [each for each in arguments if each != "--slow"]
    command = [environment.python, "-m", "pytest", "-q", *spread, *marked, *asked]
    return run(command, check=False, variables=variables)


def docs(environment: Environment, arguments: list[str]) -> int:
    """The site, with every link checked."""
    words = (
        environment.python,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--config-file",
        ROOT / "docs" / "site" / "mkdocs.yml",
    )
    return run([*words, *arguments], check=False, variables={"NO_MKDOCS_2_WARNING": "1"})


def run(command: list[object], *, check: bool = True, variables: dict[str, str] | None = None) -> int:
    """Show and run one command in the checkout."""
    words = [str(word) for word in command]
    print("$", " ".join(words).replace(f"{ROOT}{os.sep}", ""), flush=True)
    return subprocess.run(words, cwd=ROOT, check=check, env={**os.environ, **(variables or {})}).returncode


def has_gpu() -> bool:
    tool = shutil.which("nvidia-smi")
    return tool is not None and subprocess.run([tool], capture_output=True).returncode == 0


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fingerprint(environment: Environment, gpu: bool) -> str:
    """What the environment depends on; the place too, as an editable install and a venv name it."""
    parts = [sys.version, sys.executable, str(ROOT), str(gpu), environment.torch_version]
    parts += [(ROOT / name).read_text(encoding="utf-8") for name in ("pyproject.toml", "constraints.txt")]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)

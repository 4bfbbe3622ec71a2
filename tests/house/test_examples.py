"""The examples run as their docstrings say, and learn."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from graphopt.cli.cli import main

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


def _lines_of_use(name: str) -> list[list[str]]:
    """The commands in an example's docstring."""
    docstring = (EXAMPLES / f"{name}.py").read_text().split('"""')[1]
    return [line.split() for line in docstring.splitlines() if line.startswith(("python ", "graphopt "))]


def _run(words: list[str]) -> str:
    """In a process of its own, from which it starts others."""
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=EXAMPLES.parent, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


# tests/benchmarks/test_studies.py asks more of the studies
@pytest.mark.fast(1)
@pytest.mark.parametrize("name", sorted(p.stem for p in EXAMPLES.glob("*.py") if not p.stem.startswith("study_")))
def test_the_loss_falls_inside_the_budget_that_the_docstring_names(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, *words = next(words for words in _lines_of_use(name) if words[0] == "python")
    if name == "several_processes":
        said = _run(words)
    else:
        monkeypatch.setattr(sys, "argv", words)
        runpy.run_path(str(EXAMPLES.parent / words[0]), run_name="__main__")
        said = capsys.readouterr().out
    losses = [float(loss) for loss in re.findall(r"loss (\S+)$", said, re.MULTILINE)]
    assert sum(losses[-3:]) < 0.97 * sum(losses[:3])


@pytest.mark.fast(1)
@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.py")))
def test_the_command_line_plans_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, *words = next(words for words in _lines_of_use(name) if words[0] == "graphopt")
    monkeypatch.chdir(EXAMPLES.parent)
    assert main(words) == 0

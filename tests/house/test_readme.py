"""Everything that README.md shows is run as it stands there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from graphopt.cli import cli

ROOT = Path(__file__).resolve().parent.parent.parent
BLOCKS = re.findall(r"```(\w+)(?: title=(\S+))?\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
FILES = {title: text for _, title, text in BLOCKS if title}
COMMANDS = [line.partition("#")[0].strip() for kind, _, text in BLOCKS if kind == "bash" for line in text.splitlines()]


def test_python_snippets_run_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = "\n".join(text for kind, title, text in BLOCKS if kind == "python" and not title)
    namespace: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), namespace)
    assert (tmp_path / "plan.json").is_file()


def test_commands_run_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for title, text in FILES.items():
        (tmp_path / title).write_text(text)
    ours = [shlex.split(line) for line in COMMANDS if line.startswith("graphopt ")]
    assert {words[1] for words in ours} == {"plan", "verify", "sweep", "fit", "solve"}
    for words in ours:
        assert cli.main(words[1:]) == 0, capsys.readouterr().err


def test_two_processes_train_together(tmp_path: Path) -> None:
    (tmp_path / "train_together.py").write_text(FILES["train_together.py"])
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*start, tmp_path / "train_together.py"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("uncompressed") >= 2 or done.stdout.count("compression") >= 2


def test_the_two_commands_are_there() -> None:
    """They would run this test again, so only their being known is checked; CI runs them."""
    others = [line for line in COMMANDS if not line.startswith("graphopt ")]
    assert others == ["python3 run.py demo", "python3 run.py test"]
    shown = subprocess.run([sys.executable, ROOT / "run.py", "--help"], capture_output=True, text=True)
    assert shown.returncode == 0 and all(f"\n  {line.split()[2]} " in shown.stdout for line in others)
    assert subprocess.run([sys.executable, ROOT / "run.py", "nonsense"], capture_output=True).returncode == 2
    assert "python3 run.py test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_every_exit_code_is_in_the_table() -> None:
    from graphopt.base import errors

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    codes = {kind.exit_code for kind in vars(errors).values() if hasattr(kind, "exit_code")}
    assert codes | {0} == {int(code) for code in re.findall(r"^\| (\d) \|", text, re.MULTILINE)}

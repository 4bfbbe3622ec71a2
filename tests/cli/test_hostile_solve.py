"""`graphopt solve` on files that are not as they should be: exit code 2, the field named, at once."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from graphopt.cli import cli


def problem(**changes: Any) -> dict[str, Any]:
    """Eight ops in a row, the first with changes."""
    op = {"seconds": 1, "workspace": 0, "inputs": [], "outputs": [0]}
    rest = [{"seconds": 1, "inputs": [i - 1], "outputs": [i]} for i in range(1, 8)]
    sizes = changes.pop("sizes", [1] * 8)
    return {
        "schema": "graphopt.problem/1",
        "values": [{"bytes": size} for size in sizes],
        "ops": [op | changes, *rest],
        "outputs": [7],
    }


def text(**changes: Any) -> str:
    return json.dumps(problem(**changes))


FILES = {
    "a workspace of 2**63 - 1": (text(workspace=2**63 - 1), "ops[0].workspace"),
    "workspaces that only together are too large": (text(workspace=2**50), "the largest workspace"),
    "a size of 2**60": (text(sizes=[1] * 7 + [2**60]), "values[7].bytes"),
    "sizes of 2**63 - 1": (text(sizes=[2**63 - 1] * 8), "values[0].bytes"),
    "sizes that only together are too large": (text(sizes=[2**48] * 8), "the bytes of all values"),
    "seconds of 10**400": (text(seconds=10**400), "ops[0].seconds"),
    "seconds of 1e308": (text(seconds=1e308), "ops[0].seconds"),
    "seconds of 1e-308": (text(seconds=1e-308), "ops[0].seconds"),
    "seconds that are no number": (text(seconds=float("nan")), "ops[0].seconds"),
    "a size of 5,000 digits": (text().replace('"bytes": 1', f'"bytes": {"7" * 5000}', 1), "values[0].bytes"),
    "true for a size": (text().replace('"bytes": 1', '"bytes": true', 1), "values[0].bytes"),
    "a field twice": (text().replace('"bytes": 1', '"bytes": 1, "bytes": 2', 1), "'bytes' stands twice"),
    "deep nesting": (text()[:-1] + ', "x": ' + "[" * 10**5 + "]" * 10**5 + "}", "not a readable JSON file"),
    "half of it": (text()[: len(text()) // 2], "not a readable JSON file"),
    "a value that is named a million times": (text(inputs=[0] * 10**6), "names an input twice"),
}


@pytest.mark.fast(6)
@pytest.mark.parametrize("name", FILES)
def test_a_hostile_problem_is_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, named = FILES[name]
    path = tmp_path / "p.json"
    path.write_text(content, encoding="utf-8")
    begin = time.process_time()
    code = cli.main(["solve", str(path), "--mem-budget", "100GiB"])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "") and named in err and "p.json" in err
    assert len(err) < 400 + len(str(path)) and "Traceback" not in err
    assert time.process_time() - begin < 2


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_wrong_encoding_is_refused(encoding: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "p.json"
    path.write_text(text(), encoding=encoding)
    assert cli.main(["solve", str(path), "--mem-budget", "100GiB"]) == 2
    assert "not a readable JSON file" in capsys.readouterr().err


@pytest.mark.parametrize("budget", ["9" * 5000, f"{'9' * 5000}GiB", str(2**63), "9999999PiB", "1e30"])
def test_a_hostile_budget_is_refused(budget: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "p.json"
    path.write_text(text())
    assert cli.main(["solve", str(path), "--mem-budget", budget]) == 2
    assert "number of bytes" in capsys.readouterr().err


def test_the_largest_numbers_there_are_are_solved_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "p.json"
    path.write_text(text(sizes=[2**46] * 8, workspace=2**49))
    assert cli.main(["solve", str(path), "--mem-budget", str(2**63 - 1), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["peak_bytes"] == data["minimum_bytes"] == 2**46 + 2**49
    assert data["seconds"] == 8 and data["proven_optimal"]


@pytest.mark.skipif(sys.platform != "linux", reason="a limit on memory")
def test_a_file_without_end_is_refused_in_little_memory() -> None:
    code = (
        "import sys; from graphopt.cli.cli import main; sys.exit(main(['solve', '/dev/zero', '--mem-budget', '1GB']))"
    )
    found = subprocess.run(
        ["bash", "-c", f'ulimit -v 4000000; exec "{sys.executable}" -c "$0"', code], capture_output=True, text=True
    )
    assert found.returncode == 2 and "larger than" in found.stderr

"""The command line with ONNX files in place of a user's function."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from graphopt.cli import cli
from tests.support.onnx_models import Exported

TRAIN = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    layers = [m for _ in range(3) for m in (nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))]
    return nn.Sequential(*layers), (torch.randn(4, 8), torch.randn(4, 8)), nn.functional.mse_loss
"""


@pytest.fixture
def model(tmp_path: Path, exported: Callable[[str], Exported]) -> Path:
    path = tmp_path / "cnn.onnx"
    path.write_bytes(exported("cnn").raw)
    return path


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = cli.main([str(word) for word in words])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_a_file_is_planned_and_its_problem_solved(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = tmp_path / "problem.json"
    words = ("--dim", "N=8", "--mem-budget", "1MiB", "--cost-model", "roofline", "--problem-out", problem)
    code, out, err = run(capsys, "plan", model, *words)
    assert code == 0 and "FITS" in out and "cnn " in out, err
    code, out, err = run(capsys, "solve", problem, "--mem-budget", "1MiB", "--json")
    assert code == 0 and json.loads(out)["feasible"], err


def test_a_file_is_planned_without_memory_for_its_weights(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "plan", model, "--dim", "N=8", "--mem-budget", "1MiB", "--meta", "--json")
    assert code == 0 and json.loads(out)["fits"], err


def test_a_batch_is_fitted(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--dim", "N=8", "--mem-budget", "80KiB", "--cost-model", "roofline", "--json")
    code, out, err = run(capsys, "fit", model, *words)
    assert code == 0, err
    assert json.loads(out)["largest_batch"] > 0


def test_sizes_are_swept(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--dim", "N=4", "--over", "batch=2:8", "--cost-model", "roofline", "--json")
    code, out, err = run(capsys, "sweep", model, *words)
    assert code == 0, err
    assert [point["sizes"]["batch"] for point in json.loads(out)["points"]] == [2, 4, 8]


def test_a_file_is_verified(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "verify", model, "--dim", "N=4", "--mem-budget", "100KiB")
    assert code == 0 and "VERIFIED" in out, err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plan", "{model}", "--mem-budget", "1MiB"], "--dim N=8"),
        (["plan", "{model}", "--dim", "N", "--mem-budget", "1MiB"], "no NAME=SIZE"),
        (["plan", "{model}", "--dim", "M=3,N=2", "--mem-budget", "1MiB"], "no size named M"),
        (["plan", "{model}", "--dim", "N=3,N=4", "--mem-budget", "1MiB"], "gives N two sizes, 3 and 4"),
        (["plan", "{model}", "--dim", "{hole}@0=3", "--mem-budget", "1MiB"], "has a name: --dim N=3"),
        (["plan", "{model}", "--dim", "{hole}@7=3,N=2", "--mem-budget", "1MiB"], "there is no dimension {hole}@7"),
        (["plan", "{model}", "--dim", "{hole}@1=5,N=2", "--mem-budget", "1MiB"], "cannot be computed"),
        (["plan", "{train}:build", "--dim", "N=3", "--mem-budget", "1MiB"], "is none"),
        (["plan", "nowhere.onnx", "--mem-budget", "1MiB"], "there is no file"),
        (["plan", "{train}.onnx", "--mem-budget", "1MiB"], "no ONNX file"),
    ],
)
def test_usage_errors(
    words: list[str], message: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = tmp_path / "train.py"
    train.write_text(TRAIN)
    (tmp_path / "train.py.onnx").write_text(TRAIN)
    hole = onnx.load(model).graph.input[0].name
    code, out, err = run(capsys, *(word.format(model=model, train=train, hole=hole) for word in words))
    assert (code, out) == (2, "") and message.format(hole=hole) in err and "Traceback" not in err


@pytest.mark.parametrize(("package", "command"), [("onnx", "plan"), ("onnxscript", "export")])
def test_a_package_that_is_missing_is_named(
    package: str, command: str, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    words = ("--dim", "N=2", "--mem-budget", "1MiB", *(("--onnx", "out.onnx") if command == "export" else ()))
    code, _, err = run(capsys, command, model, *words)
    assert code == 2 and f"the package {package}: pip install 'graphopt[onnx]'" in err

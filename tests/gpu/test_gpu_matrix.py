"""A few models of the matrix on CUDA: inside the budget, as predicted, bitwise as captured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]

MODELS = ("gpt2", "bert", "resnet50", "unet", "lstm")
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """All cells, made in processes of their own: allocator and cuBLAS are set up before torch is imported."""
    path = tmp_path_factory.mktemp("gpu") / "rows.json"
    command = [sys.executable, "-m", "benchmarks.gpu.matrix", *MODELS, "--rounds", "0", "--json", str(path)]
    subprocess.run(command, cwd=ROOT, check=False)
    found: list[dict[str, Any]] = json.loads(path.read_text())["rows"]
    return found


@pytest.mark.parametrize("model", MODELS)
def test_every_budget_holds_as_predicted_with_the_very_gradients(rows: list[dict[str, Any]], model: str) -> None:
    mine = [row for row in rows if row["model"] == model]
    assert [row["kind"] for row in mine] == ["cell"] * 7 + ["model"]
    assert [row for row in mine if not row["good"]] == []

"""A few models of the matrix on CUDA: inside the budget, as predicted, bitwise as captured."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "benchmarks"))
import gpu
import gpu_worker

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]


@pytest.mark.parametrize("model", ["gpt2", "bert", "resnet50", "unet", "lstm"])
def test_every_budget_holds_as_predicted_with_the_very_gradients(model: str) -> None:
    rows = list(gpu_worker.run_model(model, torch.device("cuda")))
    assert len(rows) == len(gpu.SHARES) + 3
    assert [row for row in rows if not gpu.is_good(row)] == []

"""An epoch under Lightning, inside of a budget: its loop drops gradients between a model's forward and its backward."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from tests.support.epochs import Epoch, check, padded, rows, trained_inside

lightning = pytest.importorskip("pytorch_lightning")


class Module(lightning.LightningModule):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.losses = model, []

    def training_step(self, batch: dict[str, torch.Tensor], _: int) -> torch.Tensor:
        loss = self.model(**batch).loss
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.model.parameters(), lr=1e-3)


def fitted(**options: Any) -> Epoch:
    def epoch(model: nn.Module) -> list[float]:
        module = Module(model)
        quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        made = lightning.Trainer(max_epochs=1, accelerator="cpu", gradient_clip_val=1.0, **quiet, **options)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*(num_workers|LeafSpec)")
            made.fit(module, DataLoader(rows(), batch_size=4, collate_fn=padded))
        return module.losses

    return epoch


LOOPS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16, two micro-batches": {"precision": "bf16-mixed", "accumulate_grad_batches": 2},
}


@pytest.mark.parametrize("loop", LOOPS)
def test_an_epoch_of_lightning(loop: str) -> None:
    check(*trained_inside(0.8, fitted(**LOOPS[loop])))

"""Epochs under Lightning, inside of a budget: its loop drops gradients between a model's forward and its backward."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import graphopt
from tests.support.epochs import check, padded, rows, tiny_gpt2, trained_by, trained_inside

lightning = pytest.importorskip("pytorch_lightning")
callbacks = pytest.importorskip("graphopt.integrations.lightning")


class Module(lightning.LightningModule):
    """A model of somebody else's, inside of a LightningModule."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.losses = model, []

    def training_step(self, batch: dict[str, torch.Tensor], _: int) -> torch.Tensor:
        loss = self.model(**batch).loss
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: dict[str, torch.Tensor], _: int) -> None:
        self.log("validated", self.model(**batch).loss)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.model.parameters(), lr=1e-3)


def fit(module: Any, data: DataLoader[Any], *validation: DataLoader[Any], **options: Any) -> Any:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    made = lightning.Trainer(max_epochs=1, accelerator="cpu", gradient_clip_val=1.0, **quiet | options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(num_workers|LeafSpec|log_every_n_steps)")
        made.fit(module, data, *validation)
    return made


def loader(count: int = 16) -> DataLoader[Any]:
    return DataLoader(rows(count), batch_size=4, collate_fn=padded)  # type: ignore[arg-type]


def test_an_epoch_of_a_model_that_is_optimized_already() -> None:
    def epoch(model: nn.Module) -> list[float]:
        module = Module(model)
        fit(module, loader())
        return module.losses

    check(*trained_inside(0.8, epoch))


def test_the_callback_with_all_that_a_trainer_does(tmp_path: Path) -> None:
    """Half precision, micro-batches, validation in between; logs, and a checkpoint without a trace of us."""
    options: dict[str, Any] = {"precision": "bf16-mixed", "accumulate_grad_batches": 2, "val_check_interval": 2}
    checkpoint = tmp_path / "trained.ckpt"

    def epoch(model: nn.Module, budget_bytes: int | None = None) -> list[float]:
        module, logger = Module(model), lightning.loggers.CSVLogger(tmp_path)
        added = [callbacks.GraphoptLightningCallback(budget_bytes, cost_model="roofline")] if budget_bytes else []
        trainer = fit(module, loader(), loader(4), callbacks=added, logger=logger, log_every_n_steps=2, **options)
        trainer.save_checkpoint(checkpoint)
        return module.losses

    eager, ours, model = trained_by(epoch, 0.8, epoch)
    check(eager, ours, model)
    assert b"graphopt" not in checkpoint.read_bytes()
    plain = Module(tiny_gpt2())
    plain.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"])
    state = plain.model.state_dict()
    assert [name for name in eager.state if not torch.equal(eager.state[name], state[name])] == []
    with (tmp_path / "lightning_logs" / "version_1" / "metrics.csv").open() as file:
        logged = [row["graphopt/measured_bytes"] for row in csv.DictReader(file)]
    highest = max(step.measured_bytes for step in model.graphopt.history)
    assert [float(each) for each in logged if each] == [highest] and model.graphopt.measured_steps == 4


class Whole(lightning.LightningModule):
    """Layers of its own, called as `self(...)`, but for `calls_blocks`."""

    def __init__(self, calls_blocks: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.calls_blocks = nn.Embedding(512, 32), calls_blocks
        self.blocks = nn.Sequential(
            *[nn.Sequential(nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 32)) for _ in range(4)]
        )

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.embed(ids)).square().mean()

    def training_step(self, batch: dict[str, torch.Tensor], _: int) -> torch.Tensor:
        ids = batch["input_ids"]
        return self.blocks(self.embed(ids)).square().mean() if self.calls_blocks else self(ids)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_module_of_layers_of_its_own_is_optimized_whole() -> None:
    eager, ours = Whole(), Whole()
    fit(eager, loader(8))
    fit(ours, loader(8), callbacks=[callbacks.GraphoptLightningCallback("800KB", cost_model="roofline")])
    state = eager.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in ours.state_dict().items())
    plan = ours.graphopt.plan  # type: ignore[union-attr]
    assert plan.peak_bytes <= 800_000 < plan.eager_peak_bytes and plan.resident_bytes["optimizer"] == 0


def test_what_training_never_calls_is_an_error_with_the_way_out() -> None:
    with pytest.raises(graphopt.UsageError, match=r"training_step did not call Whole.*module='...'"):
        fit(Whole(calls_blocks=True), loader(4), callbacks=[callbacks.GraphoptLightningCallback("1GB")])
    named = callbacks.GraphoptLightningCallback("1GB", module="blocks", cost_model="roofline")
    module = Whole(calls_blocks=True)
    fit(module, loader(4), callbacks=[named])
    assert module.blocks.graphopt.measured_steps == 1  # type: ignore[union-attr]
    with pytest.raises(graphopt.UsageError, match="no submodule 'head'"):
        fit(Whole(), loader(4), callbacks=[callbacks.GraphoptLightningCallback("1GB", module="head")])

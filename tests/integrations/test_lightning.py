"""Epochs under Lightning, inside of a budget: its loop drops gradients between a model's forward and its backward."""

from __future__ import annotations

import csv
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import graphopt
from tests.support.epochs import check, padded, rows, tiny_gpt2, trained_by

lightning = pytest.importorskip("pytorch_lightning")
callbacks = pytest.importorskip("graphopt.integrations.lightning")


class Module(lightning.LightningModule):
    """A model of somebody else's, inside of a LightningModule."""

    def __init__(self, model: nn.Module, optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW) -> None:
        super().__init__()
        self.model, self.optimizer, self.losses = model, optimizer, []

    def training_step(self, batch: dict[str, torch.Tensor], _: int) -> torch.Tensor:
        loss = self.model(**batch).loss
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: dict[str, torch.Tensor], _: int) -> None:
        self.log("validated", self.model(**batch).loss)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.model.parameters(), lr=1e-3)  # type: ignore[call-arg]


def fit(module: Any, data: DataLoader[Any], *validation: DataLoader[Any], **options: Any) -> Any:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    made = lightning.Trainer(max_epochs=1, accelerator="cpu", gradient_clip_val=1.0, **quiet | options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(num_workers|LeafSpec|log_every_n_steps)")
        made.fit(module, data, *validation)
    return made


def loader(count: int = 16) -> DataLoader[Any]:
    return DataLoader(rows(count), batch_size=4, collate_fn=padded)  # type: ignore[arg-type]


def callback(budget_bytes: int | None, **options: Any) -> list[Any]:
    return [callbacks.GraphoptLightningCallback(budget_bytes, **options)] if budget_bytes is not None else []


@pytest.mark.slow
def test_an_epoch_in_half_precision_with_micro_batches() -> None:
    def epoch(model: nn.Module, budget_bytes: int | None = None) -> list[float]:
        module, added = Module(model), callback(budget_bytes, cost_model="roofline")
        fit(module, loader(), callbacks=added, precision="bf16-mixed", accumulate_grad_batches=2)
        return module.losses

    check(*trained_by(epoch, 0.8, epoch))


def test_a_third_of_eagers_peak_with_all_that_a_trainer_does(tmp_path: Path) -> None:
    """Micro-batches, validation in between and logs; and a checkpoint without a trace of us."""
    options: dict[str, Any] = {"accumulate_grad_batches": 2, "val_check_interval": 2, "log_every_n_steps": 2}
    checkpoint, words, tokens = tmp_path / "trained.ckpt", 128, 16 * 64

    def loaded(count: int) -> DataLoader[Any]:
        return DataLoader(rows(count, (64,), words), batch_size=16, collate_fn=padded)  # type: ignore[arg-type]

    def epoch(model: nn.Module, budget_bytes: int | None = None) -> list[float]:
        module, logger = Module(model, torch.optim.SGD), lightning.loggers.CSVLogger(tmp_path)
        added = callback(budget_bytes)
        trainer = fit(module, loaded(64), loaded(16), callbacks=added, logger=logger, **options)
        trainer.save_checkpoint(checkpoint)
        return module.losses

    eager, ours, model = trained_by(epoch, 1 / 3, epoch, partial(tiny_gpt2, words))
    check(eager, ours, model, tokens)
    assert b"graphopt" not in checkpoint.read_bytes()
    plain = Module(tiny_gpt2(words))
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
    fit(ours, loader(8), callbacks=callback(800_000, cost_model="roofline"))
    state = eager.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in ours.state_dict().items())
    plan = ours.graphopt.plan  # type: ignore[union-attr]
    assert plan.peak_bytes <= 800_000 < plan.eager_peak_bytes and plan.resident_bytes["optimizer"] == 0


def test_a_model_inside_that_is_optimized_by_hand() -> None:
    module = Whole(calls_blocks=True)
    graphopt.optimize(module.blocks, "1GB", cost_model="roofline")
    fit(module, loader(4))
    assert module.blocks.graphopt.measured_steps == 1  # type: ignore[union-attr]


def test_what_training_never_calls_is_an_error_with_the_way_out() -> None:
    with pytest.raises(graphopt.UsageError, match=r"training_step did not call Whole.*module='...'"):
        fit(Whole(calls_blocks=True), loader(4), callbacks=[callbacks.GraphoptLightningCallback("1GB")])
    named = callbacks.GraphoptLightningCallback("1GB", module="blocks", cost_model="roofline")
    module = Whole(calls_blocks=True)
    fit(module, loader(4), callbacks=[named])
    assert module.blocks.graphopt.measured_steps == 1  # type: ignore[union-attr]
    with pytest.raises(graphopt.UsageError, match="no submodule 'head'"):
        fit(Whole(), loader(4), callbacks=[callbacks.GraphoptLightningCallback("1GB", module="head")])

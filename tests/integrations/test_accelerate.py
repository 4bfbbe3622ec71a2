"""Loops around Accelerate, inside of a budget."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import graphopt
from tests.support.epochs import check, padded, rows, trained_by, trained_inside

accelerate = pytest.importorskip("accelerate")
register_backend = pytest.importorskip("graphopt.integrations.accelerate").register_backend


def accelerated(mixed_precision: str, micro_batches: int) -> Any:
    def epoch(model: nn.Module, budget_bytes: int | None = None) -> list[float]:
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = accelerate.Accelerator(
            cpu=True, mixed_precision=mixed_precision, gradient_accumulation_steps=micro_batches
        )
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        loader = DataLoader(rows(), batch_size=4, collate_fn=padded)
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        if budget_bytes is not None:
            graphopt.optimize(accelerator.unwrap_model(model), budget_bytes, cost_model="roofline")
        losses = []
        model.train()
        for batch in loader:
            with accelerator.accumulate(model):
                loss = model(**batch).loss
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.item())
        return losses

    return epoch


def test_an_epoch_of_a_model_that_is_optimized_before_it_is_prepared() -> None:
    check(*trained_inside(0.7, accelerated("no", 1)))


@pytest.mark.slow
def test_an_epoch_of_a_model_that_is_optimized_afterwards() -> None:
    epoch = accelerated("bf16", 2)
    check(*trained_by(epoch, 0.7, epoch))


@pytest.fixture
def registered() -> Iterator[None]:
    """The name is accelerate's while a test runs, and is none before."""
    if "_missing_" in vars(accelerate.utils.DynamoBackend):  # another test has registered it
        del accelerate.utils.DynamoBackend._missing_
    with pytest.raises(ValueError, match="GRAPHOPT"):
        accelerate.utils.TorchDynamoPlugin(backend="graphopt")
    register_backend()
    yield
    del accelerate.utils.DynamoBackend._missing_


def blocks() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Sequential(nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 32)) for _ in range(3)])


@pytest.mark.usefixtures("registered")
def test_accelerate_compiles_with_our_backend_once_it_knows_the_name() -> None:
    inputs, plain = torch.randn(256, 32), blocks()
    plain(inputs).sum().backward()
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    plugin = accelerate.utils.TorchDynamoPlugin(backend="graphopt", options={"mem_budget": "10KB"})
    model = accelerate.Accelerator(cpu=True, dynamo_plugin=plugin).prepare(blocks())
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="is too small"):
        model(inputs)
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    plugin = accelerate.utils.TorchDynamoPlugin(backend="graphopt", options={"mem_budget": "700KB"})
    accelerator = accelerate.Accelerator(cpu=True, dynamo_plugin=plugin)
    model = accelerator.prepare(blocks())
    accelerator.backward(model(inputs).sum())
    assert all(torch.equal(one.grad, two.grad) for one, two in zip(plain.parameters(), model.parameters(), strict=True))


@pytest.mark.usefixtures("registered")
def test_the_trainer_compiles_with_it_inside_of_the_environments_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = pytest.importorskip("transformers")

    class Returns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = blocks()

        def forward(self, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": self.blocks(inputs).square().mean()}

    drawn = torch.Generator().manual_seed(0)
    data = [{"inputs": torch.randn(64, 32, generator=drawn)} for _ in range(8)]
    losses = []
    for options in ({}, {"torch_compile_backend": "graphopt"}):
        monkeypatch.setenv("GRAPHOPT_MEM_BUDGET", "1.2MB")
        quiet = {"report_to": [], "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True, "use_cpu": True}
        arguments = transformers.TrainingArguments(str(tmp_path), num_train_epochs=1, **quiet, **options)
        trainer = transformers.Trainer(model=Returns(), args=arguments, train_dataset=data)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        torch._dynamo.reset()  # what is compiled already would serve this model too
        monkeypatch.setenv("GRAPHOPT_MEM_BUDGET", "10KB")
        made = transformers.Trainer(model=Returns(), args=arguments, train_dataset=data)
        if options:
            with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="is too small"):
                made.train()
    assert losses[0] == losses[1]

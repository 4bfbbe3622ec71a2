"""Epochs under transformers' Trainer, inside of a budget."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import graphopt
from tests.support.epochs import Epoch, check, padded, rows, tiny_gpt2, trained_by, trained_inside

pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")
callbacks = pytest.importorskip("graphopt.integrations.transformers")

#: What `GraphoptCallback` is tested with: batches so large that a third of eager's peak is enough.
WORDS, TOKENS = 128, 16 * 64


def made(model: nn.Module, folder: Path, data: Any, **options: Any) -> Any:
    quiet = {"report_to": [], "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True}
    options = {"num_train_epochs": 1, "per_device_train_batch_size": 4, "use_cpu": True, **quiet, **options}
    arguments = transformers.TrainingArguments(str(folder), **options)
    evaluated = data[:8] if "eval_strategy" in options else None
    return transformers.Trainer(
        model=model, args=arguments, train_dataset=data, eval_dataset=evaluated, data_collator=padded
    )


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def epoch(folder: Path, lengths: tuple[int, ...] = (32,), **options: Any) -> Epoch:
    def run(model: nn.Module) -> list[float]:
        trainer = made(model, folder, rows(16, lengths), **options)
        trainer.train()
        return losses(trainer)

    return run


#: Options of loops that take a model which is optimized already.
LOOPS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"bf16": True},
    "dynamic padding": {"lengths": (16,) * 4 + (32,) * 4, "train_sampling_strategy": "sequential"},
}


@pytest.mark.fast(1)
@pytest.mark.parametrize("loop", LOOPS)
def test_an_epoch_of_the_trainer(loop: str, tmp_path: Path) -> None:
    check(*trained_inside(0.65, epoch(tmp_path, **LOOPS[loop])))


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated")
def test_the_callback_where_eager_checkpoints_already(tmp_path: Path) -> None:
    def run(model: nn.Module, budget_bytes: int | None = None) -> list[float]:
        trainer = made(model, tmp_path, rows(), gradient_checkpointing=True, bf16=True)
        if budget_bytes is not None:
            callbacks.GraphoptCallback(budget_bytes, cost_model="roofline").add_to(trainer)
        trainer.train()
        return losses(trainer)

    check(*trained_by(run, 0.9, run))


def test_a_third_of_eagers_peak_with_all_that_a_trainer_does(tmp_path: Path) -> None:
    """Micro-batches, evaluation, saving and logs; and a checkpoint that a Trainer without us goes on from."""
    pytest.importorskip("tensorboard")
    options: dict[str, Any] = {"optim": "sgd", "per_device_train_batch_size": 16, "gradient_accumulation_steps": 2}
    options |= {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    trained: list[Any] = []

    def run(model: nn.Module, budget_bytes: int | None = None) -> list[float]:
        folder = tmp_path / str(bool(budget_bytes))
        trainer = made(model, folder, rows(128, (64,), WORDS), report_to=["tensorboard"], **options)
        if budget_bytes is not None:
            callbacks.GraphoptCallback(budget_bytes).add_to(trainer)
        trainer.train()
        trained.append(trainer)
        return losses(trainer)

    eager, ours, model = trained_by(run, 1 / 3, run, partial(tiny_gpt2, WORDS))
    check_losses_and_logs(eager, ours, trained[1], model)
    check_events(tmp_path / "True" / "runs", trained[1])
    check_checkpoint(tmp_path / "True" / "checkpoint-2", eager, rows(128, (64,), WORDS), options)


def check_losses_and_logs(eager: Any, ours: Any, trainer: Any, model: Any) -> None:
    """Bits are eager's, each step was inside of the budget or is told of, and the Trainer's logs have them all."""
    assert ours.losses == eager.losses and len(ours.losses) == 4
    assert [name for name in eager.state if not torch.equal(eager.state[name], ours.state[name])] == []
    assert any(plan.recomputed for plan in model.graphopt.plan.graphs)
    budget_bytes = model.graphopt.plan.budget_bytes
    over = [step.measured_bytes > budget_bytes for step in model.graphopt.history]
    told = [message for message in ours.told if "a training step took" in message]
    assert not over[-1] and len(told) <= sum(over) <= 3
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    logged = [entry["graphopt/measured_bytes"] for entry in entries]
    assert logged == [max(each.measured_bytes for each in pair) for pair in pairs(model.graphopt.history)]
    assert entries[-1]["graphopt/steps_over_budget"] == sum(over)
    assert all(entry["graphopt/budget_bytes"] == budget_bytes for entry in entries)
    assert not any("graphopt/measured_bytes" in e for e in trainer.state.log_history if "eval_loss" in e)


def pairs(history: Any) -> Any:
    """Micro-batches, two to a log."""
    return zip(history[::2], history[1::2], strict=True)


def check_events(folder: Path, trainer: Any) -> None:
    """TensorBoard has them too."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (run,) = folder.iterdir()
    events = EventAccumulator(str(run))
    events.Reload()
    logged = [entry["graphopt/measured_bytes"] for entry in trainer.state.log_history if "loss" in entry]
    assert [each.value for each in events.Scalars("train/graphopt/measured_bytes")] == pytest.approx(logged)


def check_checkpoint(folder: Path, eager: Any, data: Any, options: dict[str, Any]) -> None:
    """It has the model's own names alone, and a Trainer that knows nothing of us comes to where eager came."""
    assert not any(b"graphopt" in path.read_bytes() for path in folder.iterdir() if path.name != "trainer_state.json")
    again = made(tiny_gpt2(WORDS), folder.parent.parent / "again", data, **options)
    again.train(resume_from_checkpoint=str(folder))
    state = again.model.state_dict()
    assert [name for name in eager.state if not torch.equal(eager.state[name], state[name])] == []


class Blocks(nn.Module):
    """Returns its loss, as a Trainer wants it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(512, 32)
        self.blocks = nn.Sequential(
            *[nn.Sequential(nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 32)) for _ in range(3)]
        )

    def forward(self, input_ids: Any, labels: Any, **_: Any) -> dict[str, torch.Tensor]:
        return {"loss": (self.blocks(self.embed(input_ids)).mean(-1) - labels / 512).square().mean()}


def test_a_smaller_batch_is_tried_where_one_does_not_fit(tmp_path: Path) -> None:
    model = Blocks()
    options: dict[str, Any] = {"optimizer": torch.optim.AdamW(model.parameters()), "cost_model": "roofline"}
    graphopt.optimize(model, "1GB", example_kwargs=padded(rows(8)), **options)
    budget_bytes = model.graphopt.plan.minimum_bytes - 1  # type: ignore[union-attr]
    trainer = made(Blocks(), tmp_path, rows(), per_device_train_batch_size=8, auto_find_batch_size=True)
    trainer.add_callback(callbacks.GraphoptCallback(budget_bytes, cost_model="roofline"))
    trainer.train()
    found = trainer._train_batch_size
    assert found < 8 and len(losses(trainer)) == math.ceil(16 / found)
    assert trainer.model.graphopt.plan.resident_bytes["optimizer"] > 0
    assert "graphopt/measured_bytes" in trainer.state.log_history[0]


@pytest.mark.parametrize(("changed", "message"), [({"torch_compile": True}, "drop it"), ({"n_gpu": 2}, "torchrun")])
def test_what_would_take_the_plan_away_is_refused(changed: dict[str, Any], message: str) -> None:
    arguments: Any = SimpleNamespace(**{"torch_compile": False, "n_gpu": 1} | changed)
    with pytest.raises(graphopt.UsageError, match=message):
        callbacks.GraphoptCallback("1GB").on_train_begin(arguments, None, None, model=Blocks(), optimizer=None)

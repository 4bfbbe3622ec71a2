"""An epoch under transformers' Trainer, inside of a budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from tests.support.epochs import Epoch, check, padded, rows, trained_inside

pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")


def trainer(folder: Path, lengths: tuple[int, ...] = (32,), **options: Any) -> Epoch:
    def epoch(model: nn.Module) -> list[float]:
        quiet = {"report_to": [], "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True}
        arguments = transformers.TrainingArguments(
            str(folder), num_train_epochs=1, per_device_train_batch_size=4, use_cpu=True, **quiet, **options
        )
        data = rows(16, lengths)
        made = transformers.Trainer(model=model, args=arguments, train_dataset=data, data_collator=padded)
        made.train()
        return [entry["loss"] for entry in made.state.log_history if "loss" in entry]

    return epoch


#: Shares of eager's peak, and options. Checkpointing is eager's own already.
LOOPS: dict[str, tuple[float, dict[str, Any]]] = {
    "float32": (0.65, {}),
    "bfloat16": (0.65, {"bf16": True}),
    "two micro-batches": (0.65, {"gradient_accumulation_steps": 2}),
    "dynamic padding": (0.65, {"lengths": (16,) * 4 + (32,) * 4, "train_sampling_strategy": "sequential"}),
    "gradient checkpointing": (0.9, {"gradient_checkpointing": True}),
}


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated")
@pytest.mark.parametrize("loop", LOOPS)
def test_an_epoch_of_the_trainer(loop: str, tmp_path: Path) -> None:
    share, options = LOOPS[loop]
    eager, ours, model = trained_inside(share, trainer(tmp_path, **options))
    check(eager, ours, model)

"""An epoch under TRL's SFTTrainer: its loss is made tile by tile in a buffer, and is in the plan all the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.epochs import check, trained_by, trained_inside

trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
callbacks = pytest.importorskip("graphopt.integrations.transformers")


def words() -> Any:
    """A tokenizer of 512 words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    numbers = {f"w{i}": i for i in range(510)} | {"<pad>": 510, "<eos>": 511}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<pad>", bos_token="<eos>"
    )


def tuned(folder: Path, **options: Any) -> Any:
    def epoch(model: nn.Module, budget_bytes: int | None = None) -> list[float]:
        drawn = torch.Generator().manual_seed(1)
        texts = [" ".join(f"w{i}" for i in torch.randint(0, 510, (31,), generator=drawn).tolist()) for _ in range(16)]
        quiet = {"report_to": [], "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True}
        arguments = trl.SFTConfig(
            str(folder), num_train_epochs=1, per_device_train_batch_size=4, use_cpu=True, **quiet, **options
        )
        data = datasets.Dataset.from_dict({"text": texts})
        made = trl.SFTTrainer(model=model, args=arguments, train_dataset=data, processing_class=words())
        if budget_bytes is not None:
            callbacks.GraphoptCallback(budget_bytes, cost_model="roofline").add_to(made)
        made.train()
        return [entry["loss"] for entry in made.state.log_history if "loss" in entry]

    return epoch


# Of eager's peak the buffer is most, and no plan needs it.


@pytest.mark.slow
def test_an_epoch_of_the_sft_trainer(tmp_path: Path) -> None:
    eager, ours, model = trained_inside(0.2, tuned(tmp_path, bf16=False, gradient_checkpointing=False))
    check(eager, ours, model)
    assert_one_graph(model)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated")
def test_the_callback_with_its_defaults_which_checkpoint_in_bfloat16(tmp_path: Path) -> None:
    epoch = tuned(tmp_path)
    eager, ours, model = trained_by(epoch, 1 / 3, epoch)
    check(eager, ours, model)
    assert_one_graph(model)


def assert_one_graph(model: Any) -> None:
    (graph,) = model.graphopt.session.graphs
    assert graph.is_whole_model

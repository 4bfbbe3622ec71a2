"""An epoch under TRL's SFTTrainer: its loss is made tile by tile in a buffer, and is in the plan all the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.epochs import Epoch, check, trained_inside

trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")


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


def tuned(folder: Path, **options: Any) -> Epoch:
    def epoch(model: nn.Module) -> list[float]:
        drawn = torch.Generator().manual_seed(1)
        texts = [" ".join(f"w{i}" for i in torch.randint(0, 510, (31,), generator=drawn).tolist()) for _ in range(16)]
        quiet = {"report_to": [], "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True}
        arguments = trl.SFTConfig(
            str(folder), num_train_epochs=1, per_device_train_batch_size=4, use_cpu=True, **quiet, **options
        )
        data = datasets.Dataset.from_dict({"text": texts})
        made = trl.SFTTrainer(model=model, args=arguments, train_dataset=data, processing_class=words())
        made.train()
        return [entry["loss"] for entry in made.state.log_history if "loss" in entry]

    return epoch


#: Shares of eager's peak: the buffer is most of that, and no plan needs it. The defaults checkpoint, in bfloat16.
LOOPS: dict[str, tuple[float, dict[str, Any]]] = {
    "float32": (0.2, {"bf16": False, "gradient_checkpointing": False}),
    "defaults": (0.33, {}),
}


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated")
@pytest.mark.parametrize("loop", LOOPS)
def test_an_epoch_of_the_sft_trainer(loop: str, tmp_path: Path) -> None:
    share, options = LOOPS[loop]
    eager, ours, model = trained_inside(share, tuned(tmp_path, **options))
    check(eager, ours, model)
    (graph,) = model.graphopt.session.graphs
    assert graph.is_whole_model

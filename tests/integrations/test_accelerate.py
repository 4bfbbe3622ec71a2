"""An epoch of a loop around Accelerate, inside of a budget."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from tests.support.epochs import Epoch, check, padded, rows, trained_inside

accelerate = pytest.importorskip("accelerate")


def accelerated(mixed_precision: str, micro_batches: int) -> Epoch:
    def epoch(model: nn.Module) -> list[float]:
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = accelerate.Accelerator(
            cpu=True, mixed_precision=mixed_precision, gradient_accumulation_steps=micro_batches
        )
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        loader = DataLoader(rows(), batch_size=4, collate_fn=padded)
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
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


@pytest.mark.parametrize(("mixed_precision", "micro_batches"), [("no", 1), ("bf16", 2)])
def test_an_epoch_of_accelerate(mixed_precision: str, micro_batches: int) -> None:
    check(*trained_inside(0.7, accelerated(mixed_precision, micro_batches)))

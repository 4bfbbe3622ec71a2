"""`train_step(numerics="reordered")`: updates as with whole logits, whatever becomes of the gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import graphopt
from graphopt.device.measure import peak_bytes

CLASSES = 4096


class Language(nn.Module):
    """Embeddings that are the head's weight too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.body = nn.Embedding(CLASSES, 16), nn.Linear(16, 16)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return F.linear(torch.tanh(self.body(self.embed(ids))), self.embed.weight)


def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), label_smoothing=0.1)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids, targets = (torch.randint(0, CLASSES, (8, 24), generator=generator) for _ in range(2))
    targets[torch.rand(8, 24, generator=generator) < 0.3] = -100
    return ids, targets


def trained(mem_budget: int | None, numerics: Any, **options: Any) -> tuple[nn.Module, Any, Any]:
    model = Language()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    step = graphopt.train_step(model, loss, optimizer, mem_budget, numerics=numerics, **options)
    outs = [step(*batch()) for _ in range(3)]
    return model, step, outs


@pytest.mark.fast(3)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"accumulate": 2, "weights": "tokens", "clip": graphopt.ClipNorm(0.1)},
        {"update_in_backward": True},
        {"autocast": torch.bfloat16},
        {"loss_scale": graphopt.ConstantLossScale(1024.0)},
    ],
    ids=["plain", "cut, with token weights, clipped", "updated in the backward", "bfloat16", "scaled"],
)
def test_trains_as_whole(options: dict[str, Any]) -> None:
    whole, whole_step, whole_outs = trained(None, "bitwise", **options)
    budget = whole_step.plan.minimum_bytes - 400_000
    model, step, outs = trained(budget, "reordered", **options)
    assert all(pieces.count > 1 for pieces in step.plan.pieces)
    assert step.plan.peak_bytes <= budget
    tolerance = 2e-2 if "autocast" in options else 1e-5
    assert all(abs(a.loss - b.loss) <= tolerance * b.loss for a, b in zip(outs, whole_outs, strict=True))
    start = Language()
    for one, other, first in zip(model.parameters(), whole.parameters(), start.parameters(), strict=True):
        moved = (other - first).abs().max()
        assert (one - other).abs().max() <= tolerance * moved + 2**-23 * other.abs().max()


def test_peak_is_as_planned() -> None:
    model = Language()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    step = graphopt.train_step(model, loss, optimizer, 2_000_000, numerics="reordered", example_inputs=batch())
    inputs = batch()
    step(*inputs)
    measured = peak_bytes(lambda: step(*inputs), [*model.parameters(), *inputs], torch.device("cpu"))
    assert measured <= step.plan.peak_bytes <= 2_000_000
    assert copy.deepcopy(step.plan.pieces)[0].at_once


def test_batches_whose_common_graph_does_not_fit_are_captured_each() -> None:
    model, plain, inputs = Language(), Language(), batch()
    ours, theirs = (torch.optim.SGD(each.parameters(), lr=0.5) for each in (model, plain))
    step = graphopt.train_step(model, loss, ours, 2_000_000, numerics="reordered", example_inputs=inputs)
    for rows in (8, 7, 8, 5):
        part = [each[:rows] for each in inputs]
        theirs.zero_grad()
        expected = loss(plain(part[0]), part[1])
        expected.backward()
        theirs.step()
        out = step(*part)
        assert abs(out.loss - expected) <= 1e-5 * expected
        assert step.plan.pieces[0].count > 1
    assert all(each.measured_bytes <= 2_000_000 for each in step.history)

"""A training step whose micro-batches are captured for many numbers and shapes: what it keeps, and what it lets go."""

from __future__ import annotations

import copy
import gc
import weakref
from contextlib import nullcontext

import pytest
import torch
from torch import nn

import graphopt
from graphopt.capture.dynamo import compiled
from graphopt.step import train_step
from graphopt.step.micro_batches import micro
from graphopt.step.micro_batches.dynamo_outputs import beside_loss


class Sized(nn.Module):
    """A number of it is a size, so that each value is planned for."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.n = nn.Linear(8, 16), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.n += 1
        return self.layer(x)[:, : self.n].square().mean()


def test_micro_batches_that_were_not_used_for_longest_go_and_are_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(micro, "MOST_GRAPHS", 3)
    monkeypatch.setattr(train_step, "MOST_GRAPHS", 3)
    torch.manual_seed(0)
    model, x = Sized(), torch.randn(16, 8)
    eager = copy.deepcopy(model)
    ours, theirs = (torch.optim.SGD(each.parameters(), lr=0.1) for each in (model, eager))
    step = graphopt.train_step(model, None, ours, "1MiB", cost_model="roofline")
    micros: weakref.WeakSet[micro.Micro] = weakref.WeakSet()
    for _ in range(12):
        loss = step(x).loss
        micros |= weakref.WeakSet(step._last_micros)
        theirs.zero_grad()
        expected = eager(x)
        expected.backward()
        theirs.step()
        assert torch.equal(loss, expected)
        assert len(step._windows) <= 3
        assert len(step._memory.planned) <= 3
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), eager.parameters(), strict=True))
    gc.collect()
    assert len(micros) <= 3
    assert step.plan.peak_bytes <= 2**20


def test_what_stands_beside_a_loss_is_computed_from_numbers_alone() -> None:
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.n, self.t = nn.Linear(8, 8), 1, 0.5
            self.register_buffer("seen", torch.zeros((), dtype=torch.float64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.n, self.t = self.n + 2, self.t * 0.5
            self.seen.add_(1)
            return (self.layer(x) * self.t / self.n).square().mean()

    found = []

    def backend(module: torch.fx.GraphModule, _inputs: object) -> object:
        beside = beside_loss(module)

        def run(*flat: object) -> object:
            found.append([float(item) for item in beside(flat)])  # type: ignore[arg-type]
            return module(*flat)

        return run

    model, x = Keeps(), torch.randn(4, 8)
    captured = compiled(model._call_impl, backend, lambda _: nullcontext())
    for n, t in ((1, 0.5), (3, 0.25), (5, 0.125)):
        assert (model.n, model.t) == (n, t)
        captured(x)
    assert sorted(found[-1]) == sorted([7, 0.0625])
    assert model.seen == 3

"""Peaks of real steps that depend on what is inside of an op, or on what data there is: measured, and predicted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import graphopt
from graphopt.device import measure

OTHER_BYTES = 512
"""What a plan sets aside for what is allocated besides, which such small steps do not take."""


class Bag(nn.Module):
    def __init__(self, **options: object) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(50, 256, **options)  # type: ignore[arg-type]

    def forward(self, indices: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        return self.bag(indices, offsets).square().mean()


class Replay(nn.Module):
    """Its minimum is where a draw is made again."""

    def __init__(self, draw: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.f, self.draw = nn.Linear(16, 16), draw

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.f(x)
        a = torch.tanh(h)
        return (a + self.draw(a) * 0.1 * h).square().mean() + h.sin().mean()


def check(model: nn.Module, batch: tuple[torch.Tensor, ...]) -> None:
    """At the minimum, and with nothing recomputed."""
    curve = graphopt.estimate(model, batch)
    for budget in (curve.minimum_bytes, 2 * curve.eager_peak_bytes):
        graphopt.optimize(model, budget, example_inputs=batch)
        predicted = model.graphopt.plan.peak_bytes  # type: ignore[union-attr,operator]

        def step() -> None:
            model(*batch).backward()

        step()
        model.zero_grad(set_to_none=True)
        measured = measure.peak_bytes(step, [*model.parameters(), *batch], "cpu")
        model.zero_grad(set_to_none=True)
        assert 0 <= predicted - measured <= OTHER_BYTES, (budget, predicted, measured)
        model.graphopt.restore()  # type: ignore[union-attr,operator]


@pytest.mark.parametrize(
    "options",
    [{"mode": "max"}, {"mode": "max", "padding_idx": 3}, {"mode": "sum"}, {"mode": "mean", "padding_idx": 3}],
    ids=["max", "max with padding", "sum", "mean"],
)
def test_bags_are_never_empty_where_they_are_profiled(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    check(Bag(**options), (torch.randint(50, (4000,)), torch.arange(0, 4000, 20)))


def test_bags_of_other_integers() -> None:
    torch.manual_seed(0)
    check(Bag(mode="max"), (torch.randint(50, (4000,)).int(), torch.arange(0, 4000, 20).int()))


@pytest.mark.fast(2)
@pytest.mark.parametrize(
    "draw",
    [
        lambda a: a.new_empty(a.shape).normal_(),
        lambda a: torch.empty_like(a).bernoulli_(0.5),
        torch.randn_like,
        lambda a: torch.rand_like(a) * torch.randn_like(a),
    ],
    ids=["normal_", "bernoulli_", "randn_like", "two draws"],
)
def test_a_replay_puts_the_generators_state_aside(draw: Callable[[torch.Tensor], torch.Tensor]) -> None:
    torch.manual_seed(0)
    check(Replay(draw), (torch.randn(256, 8, 16),))


@pytest.mark.parametrize("width", [64, 96])
@pytest.mark.parametrize("nesterov", [True, False])
def test_products_inside_of_muons_update_have_scratch(width: int, nesterov: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(width, width, bias=False), nn.Tanh(), nn.Linear(width, width, bias=False))
    batch = torch.randn(4, width), torch.randn(4, width)
    optimizer = torch.optim.Muon(model.parameters(), lr=1e-3, nesterov=nesterov)
    step = graphopt.train_step(model, F.mse_loss, optimizer, "1GiB", example_inputs=batch)
    assert step.report.step is not None and step.report.step.tail_bytes["update workspace"] > 0
    for _ in range(2):
        step(*batch)
    state = [value for kept in optimizer.state.values() for value in kept.values() if isinstance(value, torch.Tensor)]
    measured = measure.peak_bytes(lambda: step(*batch), [*model.parameters(), *batch, *state], "cpu")
    assert 0 <= step.plan.peak_bytes - measured <= OTHER_BYTES, (step.plan.peak_bytes, measured)

"""What the mean of a window is over: uneven micro-batches, tokens, nothing at all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim

import graphopt
from tests.support.loops import make_pair, state_of, ulps
from tests.support.models import Perceptron, Tied, seeded, sentences, vectors
from tests.support.zoo import differences


def sgd(parameters: Any) -> optim.Optimizer:
    return optim.SGD(parameters, 1.0)


def step_of(model: nn.Module, **options: Any) -> graphopt.TrainStep:
    return graphopt.train_step(model, None, sgd(model.parameters()), cost_model="roofline", **options)


def worst(one: nn.Module, other: nn.Module) -> float:
    return max(ulps(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def counted(_ids: Tensor, labels: Tensor) -> float:
    return float((labels != -100).sum())


@pytest.mark.parametrize("weights", ["tokens", counted])
@pytest.mark.parametrize("accumulate", [2, 3, 6])
def test_weighing_by_tokens_is_one_big_batch(accumulate: int, weights: Any) -> None:
    pair = make_pair(seeded(Tied), sgd)
    step = step_of(seeded(Tied)(), accumulate=accumulate, weights=weights)
    ((ids, labels), _) = sentences(1)[0]
    out, (loss, _) = step(ids, labels), pair.loop(ids, labels)
    assert ulps(out.loss, loss) <= 2
    # gradients add up in another order; the learning rate is 1, so this is 2.4e-7 of the largest parameter
    assert worst(step.model, pair.loop.model) <= 2


def test_without_weights_a_mean_of_means_is_something_else() -> None:
    pair = make_pair(seeded(Tied), sgd)
    step = step_of(seeded(Tied)(), accumulate=3)
    for (ids, labels), _ in sentences(1):
        step(ids, labels), pair.loop(ids, labels)
    assert worst(step.model, pair.loop.model) > 1000


def test_labels_by_keyword_are_counted() -> None:
    pair = make_pair(seeded(Tied), sgd)
    step = step_of(seeded(Tied)(), accumulate=3, weights="tokens")
    ((ids, labels), _) = sentences(1)[0]
    step(labels=labels, ids=ids), pair.loop(ids, labels)
    assert worst(step.model, pair.loop.model) <= 4


def test_a_micro_batch_without_tokens_is_left_out() -> None:
    ((ids, labels), _) = sentences(1)[0]
    labels[2:4] = -100
    pair = make_pair(seeded(Tied), sgd)
    step = step_of(seeded(Tied)(), accumulate=3, weights="tokens")
    out, _ = step(ids, labels), pair.loop(ids, labels)
    assert out.loss.isfinite() and not out.skipped
    assert worst(step.model, pair.loop.model) <= 4


@pytest.mark.parametrize("scale", [None, graphopt.DynamicLossScale(2.0**8)])
def test_a_window_without_tokens_changes_nothing(scale: Any) -> None:
    model = seeded(Tied)()
    optimizer = optim.AdamW(model.parameters(), fused=True)
    scheduler = optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    step = graphopt.train_step(
        model, None, optimizer, accumulate=3, weights="tokens", loss_scale=scale, lr_scheduler=scheduler
    )
    ((ids, labels), _) = sentences(1)[0]
    step(ids, labels)
    before = state_of(model, optimizer), optimizer.param_groups[0]["lr"], step.loss_scale
    out = step(ids, torch.full_like(labels, -100))
    assert out.skipped and out.loss.isnan() and out.grad_norm is None
    assert differences(before[0], state_of(model, optimizer)) == {}
    assert (optimizer.param_groups[0]["lr"], step.loss_scale) == before[1:]


@pytest.mark.fast(3)
@pytest.mark.parametrize("rows", [8, 7, 5, 2, 1])
def test_a_short_last_window_is_a_mean_over_what_is_there(rows: int) -> None:
    pair = make_pair(seeded(Perceptron), sgd)
    step = step_of(seeded(Perceptron)(), accumulate=4)
    batches = [vectors(1)[0][0], tuple(v[:rows] for v in vectors(1)[0][0])]
    for x, y in batches:
        out, (loss, _) = step(x, y), pair.loop(x, y)
        assert ulps(out.loss, loss) <= 2
    assert worst(step.model, pair.loop.model) <= 8
    assert step.micro_batch_size == 2


def test_a_bigger_batch_is_more_micro_batches() -> None:
    pair = make_pair(seeded(Perceptron), sgd)
    step = step_of(seeded(Perceptron)(), accumulate=2)
    for rows in (4, 10):
        ((x, y), _) = vectors(1, rows=rows)[0]
        step(x, y), pair.loop(x, y)
    assert step.graph_module.code.count("self.micro_batch_0") == 5
    assert worst(step.model, pair.loop.model) <= 8


class WithTable(Perceptron):
    """Takes a table that belongs to no row."""

    def forward(self, x: Tensor, y: Tensor, table: Tensor, power: float = 1.0) -> Tensor:  # type: ignore[override]
        return super().forward(x * table.mean(0) ** power, y)


def test_what_is_not_of_the_batch_goes_whole_to_each_micro_batch() -> None:
    pair = make_pair(seeded(WithTable), sgd, accumulate=1)
    step = step_of(seeded(WithTable)(), accumulate=2)
    table = torch.rand(3, 6) + 1
    for (x, y), _ in vectors(2):
        step(x, y, table, power=2.0), pair.loop(x, y, table, power=2.0)
    assert worst(step.model, pair.loop.model) <= 8

"""Which parameters have a gradient, and how it lies in memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import nn, optim

import graphopt
from tests.support.loops import make_pair, state_of
from tests.support.models import (
    Convolutions,
    LeftOut,
    Optional,
    Perceptron,
    Tied,
    Turned,
    WithUnused,
    seeded,
    sentences,
    vectors,
)

WAYS: dict[str, Any] = {
    "at once": {},
    "accumulated": {"accumulate": 2},
    "scaled": {"accumulate": 2, "loss_scale": graphopt.DynamicLossScale(2.0**8), "clip": graphopt.ClipNorm(1e9)},
}


def adamw(parameters: Iterable[nn.Parameter]) -> optim.Optimizer:
    return optim.AdamW(parameters, 0.01, weight_decay=0.1, fused=True)


def momentum(parameters: Iterable[nn.Parameter]) -> optim.Optimizer:
    return optim.SGD(parameters, 0.01, momentum=0.9, weight_decay=0.1, fused=True)


def unfused(parameters: Iterable[nn.Parameter]) -> optim.Optimizer:
    """torch 2.13's fused SGD raises where some parameters have momentum and others have none yet."""
    return optim.SGD(parameters, 0.01, momentum=0.9, weight_decay=0.1)


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("model", [WithUnused, LeftOut])
def test_without_gradient_a_parameter_is_skipped(model: type[nn.Module], options: dict[str, Any]) -> None:
    pair = make_pair(seeded(model), adamw, **options)
    before = state_of(pair.step.model, pair.step.optimizer)
    pair.run(vectors(3))
    assert pair.differences() == {}
    for name in ("unused.weight", "unused.bias", "weight"):
        if name in before:  # weight decay would have changed it
            parameter = pair.step.model.get_parameter(name)
            assert torch.equal(parameter, before[name]) and parameter not in pair.step.optimizer.state


@pytest.mark.parametrize("make", [adamw, unfused])
@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
def test_a_gradient_that_comes_and_goes(make: Any, options: dict[str, Any]) -> None:
    pair = make_pair(seeded(Optional), make, **options)
    batches = [(args, {"extra": number % 3 == 1}) for number, (args, _) in enumerate(vectors(6))]
    pair.run(batches, exactly=make is adamw)
    assert max(pair.differences().values(), default=0.0) < (1e-300 if make is adamw else 1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_over_many_rows(dtype: torch.dtype) -> None:
    """More than any BLAS adds up in one go, into matrices as narrow as some round otherwise."""
    pair = make_pair(lambda: seeded(Perceptron)().to(dtype), momentum, accumulate=3)
    pair.run(vectors(3, rows=3000, dtype=dtype))
    assert pair.differences() == {}


@pytest.mark.parametrize("least", [1, 4])
def test_a_gradient_in_some_micro_batches(least: int) -> None:
    # 7 rows are 4 and 3: with `least` 4 the second micro-batch has no gradient for the extra layer
    pair = make_pair(seeded(Optional, least), momentum, accumulate=2, clip=graphopt.ClipNorm(1e9))
    pair.run(vectors(4, rows=7))
    assert pair.differences() == {}


class OnlyLast(Optional):
    """The extra layer for short micro-batches, which come last."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(x, y, extra=len(x) < 4)


def test_a_gradient_in_the_last_micro_batch_alone() -> None:
    pair = make_pair(seeded(OnlyLast), momentum, accumulate=2)
    pair.run(vectors(4, rows=7))
    assert pair.differences() == {}


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
def test_tied_weights_count_once(options: dict[str, Any]) -> None:
    pair = make_pair(seeded(Tied), momentum, **options)
    with_labels = [((ids, labels.clamp(min=0)), {}) for (ids, labels), _ in sentences(4)]
    pair.run(with_labels)
    assert pair.differences() == {}
    assert len(list(pair.step.model.parameters())) == 1


def test_the_norm_of_tied_weights_counts_them_once() -> None:
    pair = make_pair(seeded(Tied), lambda p: optim.SGD(p, 0.0), clip=graphopt.ClipNorm(1e9))
    ((ids, labels), _) = sentences(1)[0]
    out = pair.step(ids, labels)
    pair.loop.model(ids, labels).backward()
    assert torch.equal(out.grad_norm, pair.loop.model.embedding.weight.grad.norm())  # type: ignore[union-attr]


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
def test_frozen_and_unfrozen_in_the_middle(options: dict[str, Any]) -> None:
    pair = make_pair(seeded(Perceptron), adamw, **options)
    batches = vectors(6)
    for frozen in (True, False, True):
        for model in (pair.step.model, pair.loop.model):
            model.first.requires_grad_(not frozen)  # type: ignore[union-attr]
        pair.run(batches[:2])
        assert pair.differences() == {}
        batches = batches[2:]


def test_what_the_optimizer_does_not_hold_is_not_trained() -> None:
    def head(parameters: Iterable[nn.Parameter]) -> optim.Optimizer:
        return momentum(list(parameters)[2:])

    pair = make_pair(seeded(Perceptron), head, accumulate=2, clip=graphopt.ClipNorm(1e9))
    before = state_of(pair.step.model, pair.step.optimizer)
    pair.run(vectors(3))
    assert pair.differences() == {}
    assert torch.equal(pair.step.model.first.weight, before["first.weight"])  # type: ignore[union-attr,arg-type]
    assert all(parameter.grad is None for parameter in pair.step.model.parameters())


def test_a_group_added_in_the_middle_is_trained() -> None:
    pair = make_pair(seeded(Perceptron), lambda p: adamw(list(p)[2:]), accumulate=2)
    pair.run(vectors(2))
    for side in (pair.step, pair.loop):
        side.optimizer.add_param_group({"params": list(side.model.first.parameters()), "lr": 0.1})
    pair.run(vectors(2))
    assert pair.differences() == {}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_sparse_gradient_is_refused_or_right(accumulate: int) -> None:
    pair = make_pair(seeded(Tied, sparse=True, tied=False), lambda p: optim.SGD(p, 0.1), accumulate=accumulate)
    ((ids, labels), _) = sentences(1)[0]
    with pytest.raises(graphopt.GraphoptError, match="sparse"):
        pair.step(ids, labels)


@pytest.mark.parametrize("make", [adamw, momentum])
@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
def test_transposed_parameters_and_gradients(make: Any, options: dict[str, Any]) -> None:
    pair = make_pair(seeded(Turned, "transposed"), make, **options)
    pair.run(vectors(4))
    assert pair.differences() == {}
    assert pair.step.model.weight.stride() == (1, 6)  # type: ignore[operator,union-attr]


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
def test_parameters_with_gaps_in_memory(options: dict[str, Any]) -> None:
    # torch's fused SGD on CPU is wrong for them, so the loop's is not fused; both round once an operation
    pair = make_pair(seeded(Turned, "strided"), lambda p: optim.SGD(p, 0.125), **options)
    pair.run(vectors(4), exactly=False)
    assert max(pair.differences().values(), default=0.0) < 1e-6


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
def test_channels_last(options: dict[str, Any]) -> None:
    pair = make_pair(seeded(Convolutions), momentum, **options)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, 4, 3, 8, 8, generator=generator)
    pair.run([((batch.to(memory_format=torch.channels_last),), {}) for batch in images])
    assert pair.differences() == {}
    weight = pair.step.model.body[0].weight  # type: ignore[index,union-attr]
    assert weight.is_contiguous(memory_format=torch.channels_last)


class Zero(Perceptron):
    """Gradients that are all zero."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return super().forward(x, y) * 0.0


@pytest.mark.parametrize("norm_type", [2.0, 3.0, float("inf")])
def test_a_norm_of_zero_changes_nothing_but_decays(norm_type: float) -> None:
    pair = make_pair(seeded(Zero), adamw, clip=graphopt.ClipNorm(1.0, norm_type), accumulate=2)
    pair.run(vectors(2))
    assert pair.differences() == {}
    assert float(pair.step(*vectors(1)[0][0]).grad_norm) == 0.0  # type: ignore[arg-type]

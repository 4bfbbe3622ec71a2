"""Several forwards before a backward: planned together from the second time on, and told of the first time."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

import graphopt
from graphopt.device.measure import peak_bytes
from tests.support.residual_blocks import blocks, same_gradients, trained_like_eager


def siamese(model: nn.Module, _: int) -> None:
    model.zero_grad()
    x = torch.randn(512, 64)
    (model(x) + model(2 * x)).square().mean().backward()


def triplet(model: nn.Module, _: int) -> None:
    model.zero_grad()
    x = torch.randn(512, 64)
    (model(x) + model(2 * x) + model(3 * x)).square().mean().backward()


def of_two_sizes(model: nn.Module, _: int) -> None:
    model.zero_grad()
    (model(torch.randn(512, 64)).square().mean() + model(torch.randn(384, 64)).square().mean()).backward()


def in_two_backwards(model: nn.Module, _: int) -> None:
    model.zero_grad()
    one, two = model(torch.randn(512, 64)).square().mean(), model(torch.randn(512, 64)).square().mean()
    one.backward()
    two.backward()


def adversarial(model: nn.Module, _: int) -> None:
    """Two forwards before a backward, then one, as a discriminator is trained and used."""
    model.zero_grad()
    (model(torch.randn(512, 64)) - model(torch.randn(512, 64))).mean().backward()
    model(torch.randn(512, 64)).mean().backward()


def many_small(model: nn.Module, _: int) -> None:
    model.zero_grad()
    h = torch.randn(64, 64)
    for _ in range(12):
        h = model(h)
    h.square().mean().backward()


@pytest.mark.fast(1)
@pytest.mark.parametrize(
    ("loop", "budget"),
    [
        (siamese, 4_800_000),
        (triplet, 6_600_000),
        (of_two_sizes, 4_800_000),
        (in_two_backwards, 4_800_000),
        (adversarial, 5_200_000),
        (many_small, 5_200_000),
    ],
)
def test_the_second_time_it_is_inside_the_budget(loop: Callable[[nn.Module, int], None], budget: int) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = trained_like_eager(loop, 4, budget, cost_model="roofline")
    told = [str(w.message) for w in caught if "before the backward of its first call" in str(w.message)]
    assert len(told) <= 1
    history = model.graphopt.history
    assert len(history) >= 4
    first = 2 if loop is adversarial else 1
    over = [each.measured_bytes - budget for each in history[first:]]
    assert max(over) <= 0
    assert (history[0].measured_bytes > budget) == bool(told)


def test_the_prediction_is_that_of_all_forwards() -> None:
    """`(m(x) + m(x)).backward()` was planned as one: 3.48 MB of 3.70, and 5.71 measured."""
    model, x = blocks(), torch.randn(512, 64)
    graphopt.optimize(model, 4_800_000, cost_model="roofline")

    def step() -> None:
        model.zero_grad()
        (model(x) + model(x)).square().mean().backward()

    with pytest.warns(UserWarning, match="before the backward of its first call"):
        step()
    step()
    model.zero_grad()
    measured = peak_bytes(step, [*model.parameters(), x], "cpu")
    plan = model.graphopt.plan
    # x is one tensor here, and the plan has to expect two; the sum needs no second output
    assert plan.peak_bytes - 3 * x.nbytes - 512 <= measured <= plan.peak_bytes <= 4_800_000
    assert plan.resident_bytes["other forwards before the same backward"] > 0


def test_a_pattern_that_cannot_fit_is_a_budget_error_that_names_it() -> None:
    model = blocks()
    graphopt.optimize(model, 3_700_000, cost_model="roofline")
    with pytest.warns(UserWarning, match="called again before the backward"):
        siamese(model, 0)
    with pytest.raises(graphopt.BudgetError, match="inputs of other forwards before the same backward") as caught:
        siamese(model, 1)
    assert 3_700_000 < caught.value.minimum_bytes < 6_000_000


def test_a_forward_whose_outputs_are_gone_is_not_waited_for() -> None:
    model = blocks()
    eager = copy.deepcopy(model)
    graphopt.optimize(model, "16MiB", cost_model="roofline")
    for each in (model, eager):
        each(torch.ones(8, 64))
        each(torch.ones(8, 64)).sum().backward()
    assert same_gradients(model, eager)
    assert not model.graphopt.in_force.key.behind


@pytest.mark.fast(1)
@pytest.mark.parametrize(("loop", "budget"), [(siamese, "1.6MB"), (triplet, "2.2MB"), (in_two_backwards, "1.4MB")])
def test_batch_norms_may_run_again_behind_a_forward_that_wrote_their_statistics(
    loop: Callable[[nn.Module, int], None], budget: str
) -> None:
    def normed() -> nn.Module:
        torch.manual_seed(0)
        layers = (nn.Linear(64, 64), nn.LayerNorm(64), nn.BatchNorm1d(64), nn.Linear(64, 64), nn.GELU())
        return nn.Sequential(*(copy.deepcopy(layer) for _ in range(2) for layer in layers))

    model, eager = normed(), normed()
    graphopt.optimize(model, budget, cost_model="roofline")
    for i in range(3):
        for each in (model, eager):
            torch.manual_seed(i)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                loop(each, i)
        assert same_gradients(model, eager)
        assert all(map(torch.equal, model.buffers(), eager.buffers()))
    saved = [
        node.name
        for graph in model.graphopt.session.graphs
        for compiled in graph.compiled.values()
        if compiled.emitted is not None
        for node in compiled.emitted.forward.graph.nodes
    ]
    assert any(name.endswith("_unwatched") for name in saved)

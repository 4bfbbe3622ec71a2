"""Dropout with probability 1: eager multiplies by zero and draws nothing, so what is drawn later is the same."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import graphopt
from tests.support.residual_blocks import same_gradients


class Does(nn.Module):
    def __init__(self, work: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.work = work

    def forward(self, x: Tensor) -> Tensor:
        return self.work(x)


class Attends(nn.Module):
    def __init__(self, *, weights: bool) -> None:
        super().__init__()
        self.attention, self.weights = nn.MultiheadAttention(8, 2, dropout=1.0, batch_first=True), weights

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.attention(x[None], x[None], x[None], need_weights=self.weights)[0]
        return output[0]


def attend(x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x[None], x[None], x[None], dropout_p=1.0)[0]


def infinite(x: Tensor) -> Tensor:
    """Infinite where positive: times zero it is nan."""
    return torch.where(x > 0, x * float("inf"), x)


MIDDLES: dict[str, Callable[[], nn.Module]] = {
    "dropout": lambda: nn.Dropout(1.0),
    "in place": lambda: nn.Dropout(1.0, inplace=True),
    "nothing": lambda: Does(lambda x: torch.cat([x, F.dropout(x[:0], 1.0)])),
    "narrow": lambda: Does(lambda x: F.dropout(x.bfloat16(), 1.0).float()),
    "alpha": lambda: nn.AlphaDropout(1.0),
    "features": lambda: Does(lambda x: F.dropout1d(x[None], 1.0)[0]),
    "features of two": lambda: Does(lambda x: F.dropout2d(x[None, None], 1.0)[0, 0]),
    "features of three": lambda: Does(lambda x: F.dropout3d(x[None, None, None], 1.0)[0, 0, 0]),
    "features, alpha": lambda: Does(lambda x: F.feature_alpha_dropout(x[None], 1.0, True)[0]),
    "attention": lambda: Does(attend),
    "attention with weights": lambda: Attends(weights=True),
    "attention without": lambda: Attends(weights=False),
    "native": lambda: Does(lambda x: torch.native_dropout(x, 1.0, True)[0]),
}


def model_with(middle: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 8), middle, nn.Linear(8, 8), nn.Dropout(0.5))


@pytest.mark.parametrize("name", MIDDLES)
def test_it_draws_what_eager_draws(name: str) -> None:
    torch.manual_seed(0)
    model, x = model_with(MIDDLES[name]()), torch.randn(4, 8)
    eager = copy.deepcopy(model)
    graphopt.optimize(model, "1GiB", example_inputs=x, cost_model="roofline")
    for step in range(2):
        results = []
        for each in (eager, model):
            torch.manual_seed(step)
            each.zero_grad()
            output = each(x)
            output.square().sum().backward()
            results.append((output.detach(), torch.get_rng_state()))
        assert all(torch.equal(own, other) for own, other in zip(*results, strict=True))
        assert same_gradients(eager, model)


def test_what_is_infinite_is_nan() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 8), Does(lambda x: F.dropout(infinite(x), 1.0))), torch.randn(4, 8)
    expected = model(x)
    graphopt.optimize(model, "1GiB", example_inputs=x, cost_model="roofline")
    found = model(x)
    assert expected.isnan().any()
    assert torch.equal(expected.isnan(), found.isnan())
    assert torch.equal(expected.nan_to_num(), found.nan_to_num())


def test_a_training_step_draws_what_eager_draws() -> None:
    torch.manual_seed(0)
    model, x = model_with(nn.Dropout(1.0)), torch.randn(4, 8)
    eager = copy.deepcopy(model)
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (eager, model)]
    step = graphopt.train_step(model, F.mse_loss, optimizers[1], "1GiB", example_inputs=(x, x), cost_model="roofline")
    states = []
    torch.manual_seed(1)
    for _ in range(3):
        optimizers[0].zero_grad()
        F.mse_loss(eager(x), x).backward()
        optimizers[0].step()
    states.append(torch.get_rng_state())
    torch.manual_seed(1)
    for _ in range(3):
        step(x, x)
    states.append(torch.get_rng_state())
    assert torch.equal(*states)
    for own, other in zip(model.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-6, atol=1e-7)

"""Where Dynamo gives a frame up it captures piece by piece what that calls: all are met before any is planned."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

import graphopt
from tests.support.residual_blocks import trained_like_eager


class Breaks(nn.Module):
    """A layer, a break, a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.one(x))
        torch._dynamo.graph_break()
        return self.two(x)


class Pieces(nn.Module):
    """Three pieces, called by `through` in some way that Dynamo gives up."""

    def __init__(self, through: Callable[[nn.Module, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(64, 256), nn.Linear(256, 64), nn.Linear(64, 64)
        self.breaks, self.through = Breaks(), through

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.through(self, x)


def in_a_loop(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
    for layer in (self.first, nn.functional.gelu, self.inner, self.breaks, self.last):
        x = layer(x)
    return x


def in_a_try(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
    try:
        x = self.breaks(self.inner(torch.sin(self.first(x))))
    except ZeroDivisionError:
        x = x * 2
    return self.last(x)


def in_a_generator(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
    def pieces() -> Iterator[torch.Tensor]:
        h = self.inner(torch.sin(self.first(x)))
        yield h
        yield self.breaks(h)

    return self.last(sum(pieces()))


def with_a_part_that_is_disabled(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
    x = self.inner(torch.sin(self.first(x)))
    return self.last(torch._dynamo.disable(self.breaks)(x))


WAYS = [in_a_loop, in_a_try, in_a_generator, with_a_part_that_is_disabled]


@pytest.mark.fast(1)
@pytest.mark.parametrize("way", WAYS)
def test_an_example_is_planned_as_the_loop_is(way: Callable[..., torch.Tensor]) -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 64)
    at_once = graphopt.optimize(Pieces(way), "64MiB", example_inputs=x, cost_model="roofline").graphopt.plan
    model = graphopt.optimize(Pieces(way), "64MiB", cost_model="roofline")
    model(x).square().mean().backward()
    in_loop = model.graphopt.plan
    assert [graph.graph_hash for graph in at_once.graphs] == [graph.graph_hash for graph in in_loop.graphs]
    assert at_once.minimum_bytes == in_loop.minimum_bytes
    assert len(at_once.graphs) >= 2


@pytest.mark.fast(1)
@pytest.mark.parametrize("way", WAYS)
def test_gradients_are_eagers_inside_the_budget_or_it_is_said(
    way: Callable[..., torch.Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    def loop(model: nn.Module, _: int) -> None:
        model.zero_grad()
        model(torch.randn(256, 64)).square().mean().backward()

    torch.manual_seed(0)
    model = trained_like_eager(loop, 3, "2MiB", Pieces(way), cost_model="roofline")
    over = [step for step in model.graphopt.history if step.measured_bytes > 2 * 2**20]
    told = [record for record in caplog.records if "a training step took" in record.getMessage()]
    assert len(told) == len(over)

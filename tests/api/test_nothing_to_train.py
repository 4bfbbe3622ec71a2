"""Models in which nothing needs a gradient run as they are, and what asks for a plan is told why there is none."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import graphopt
from graphopt.base.errors import UsageError


class Frozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        torch._dynamo.graph_break()
        return self.second(x)  # type: ignore[no-any-return]


MODELS: list[Callable[[], nn.Module]] = [lambda: nn.Linear(64, 64).requires_grad_(False), nn.ReLU, Frozen]


@pytest.mark.parametrize("with_example", [True, False])
@pytest.mark.parametrize("make", MODELS)
def test_it_runs_as_it_is(make: Callable[[], nn.Module], with_example: bool) -> None:
    x, eager = torch.randn(8, 64), make()
    model = make()
    model.load_state_dict(eager.state_dict())
    graphopt.optimize(model, "1MiB", example_inputs=x if with_example else None)
    assert torch.equal(model(x), eager(x))
    with pytest.raises(UsageError, match="there is nothing to plan"):
        model.graphopt.plan  # noqa: B018


@pytest.mark.parametrize("make", MODELS)
def test_an_estimate_of_it_says_so(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(UsageError, match="there is nothing to plan"):
        graphopt.estimate(make(), torch.randn(8, 64))


def test_what_leads_to_an_input_that_needs_a_gradient_is_planned() -> None:
    x = torch.randn(8, 64, requires_grad=True)
    model = graphopt.optimize(nn.ReLU(), "1MiB", example_inputs=x)
    model(x).sum().backward()
    assert torch.equal(x.grad, (x > 0).float()) and model.graphopt.plan.peak_bytes

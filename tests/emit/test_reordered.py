"""A step whose ops run in another order than the model wrote them in: the same results, and less memory."""

import pytest
import torch
from torch import Tensor, nn

import graphopt
from graphopt.api.verify import verify_model


class WideEarly(nn.Module):
    """A wide table is made first and summed last: random ops stand between."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(3))
        self.table = nn.Linear(64, 1024).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        table = self.table(x)
        h = x
        for layer in self.layers:
            h = nn.functional.dropout(layer(h).tanh(), 0.25)
        return (h * table.sum(1, keepdim=True)).square().mean()


def test_what_is_wide_is_summed_at_once_and_gradients_are_eagers() -> None:
    torch.manual_seed(0)
    model, x = WideEarly(), torch.randn(2048, 64)
    with pytest.raises(graphopt.BudgetError) as caught:
        verify_model(model, (x,), mem_budget=1, planner="none", cost_model="roofline")
    budget = int(0.96 * caught.value.minimum_bytes)
    done = verify_model(model, (x,), mem_budget=budget, planner="reorder", cost_model="roofline", time_rounds=1)
    assert done.bitwise
    assert done.report.plan.overhead == 0
    first_runs = list(dict.fromkeys(done.report.plan.graphs[0].schedule))
    assert first_runs != sorted(first_runs)

from __future__ import annotations

import pytest
import torch
from torch import nn

from graphopt.cost_models.model_state import ModelState, model_state
from graphopt.errors import UsageError


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(10, 4), nn.Linear(4, 10, bias=False)
        self.head.weight = self.embedding.weight
        self.frozen = nn.Parameter(torch.zeros(7), requires_grad=False)
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.embedding(x)).sum() + self.norm(torch.ones(2, 3)).sum()


TRAINED = 40 + 6  # tied weight once, batch norm's weight and bias


def test_each_storage_counts_once_and_frozen_ones_have_no_gradient():
    assert model_state(Tied()) == ModelState(4 * (TRAINED + 7), 4 * 6 + 8, 4 * TRAINED, 0)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p),
    "adamw": lambda p: torch.optim.AdamW(p, fused=True),
    "amsgrad": lambda p: torch.optim.Adam(p, amsgrad=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_prediction_is_what_the_optimizer_then_holds(name):
    model = Tied()
    optimizer = OPTIMIZERS[name](model.parameters())
    predicted = model_state(model, optimizer)
    model(torch.zeros(5, dtype=torch.int64)).backward()
    optimizer.step()
    assert model_state(model, optimizer) == predicted
    copies = {"sgd": 0, "momentum": 1, "nesterov": 1, "amsgrad": 3}.get(name, 2)
    steps = 4 * 3 if name in ("adam", "adamw", "amsgrad") else 0
    assert predicted.optimizer_bytes == copies * 4 * TRAINED + steps


def test_unknown_optimizer_asks_for_a_step_first():
    model = nn.Linear(3, 3)
    optimizer = torch.optim.Rprop(model.parameters())
    with pytest.raises(UsageError, match=r"Rprop.*first step"):
        model_state(model, optimizer)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert model_state(model, optimizer).optimizer_bytes == 2 * 4 * 12 + 2 * 4

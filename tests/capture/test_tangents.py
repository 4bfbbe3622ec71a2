"""Which outputs are taken for the loss that is trained."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from graphopt.capture.tangents import loss_alone
from tests.support.joint import joint_graph

Outputs = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, ...]]


class Two(nn.Module):
    """What two layers give, one behind the other, made into outputs."""

    def __init__(self, outputs: Outputs) -> None:
        super().__init__()
        self.first, self.second, self.outputs = nn.Linear(4, 4), nn.Linear(4, 3), outputs

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        h = self.first(x).tanh()
        return self.outputs(h, self.second(h))


CASES: list[tuple[str, Outputs, set[int]]] = [
    ("loss and logits", lambda _, y: (y.mean(), y), {0}),
    ("a loss of shape [1]", lambda h, y: (h, y.mean().reshape(1), y), {1}),
    ("two losses", lambda h, y: (y.mean(), y, h.mean()), {0, 2}),
    ("no loss", lambda h, y: (h, y), {0, 1}),
    ("a penalty that trains half of it", lambda h, y: (h.square().mean(), y), {0, 1}),
]


@pytest.mark.parametrize(("outputs", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_loss_alone_is_expected_where_it_trains_everything(outputs: Outputs, expected: set[int]) -> None:
    joint, _ = joint_graph(Two(outputs), torch.randn(2, 4))
    assert loss_alone(joint) == expected

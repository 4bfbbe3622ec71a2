"""Values that a mask writes: their gradient is one op, with eager's bits, whatever the key looks like."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import graphopt
from graphopt.device.measure import peak_bytes
from tests.support.residual_blocks import same_gradients

Write = Callable[[Tensor, Tensor, Tensor], Tensor | None]


def rows(h: Tensor, x: Tensor, v: Tensor) -> None:
    h[x[..., 0] > 0] = v


def columns(h: Tensor, x: Tensor, v: Tensor) -> None:
    h[:, x[:, 0, 0] > 0] = v[:1]


def behind_an_ellipsis(h: Tensor, x: Tensor, v: Tensor) -> None:
    h[..., x[0, 0] > 0] = v[:1]


def behind_a_number(h: Tensor, x: Tensor, v: Tensor) -> None:
    h[1, :, x[0, 0] > 0] = v[:4, None]


def before_a_slice(h: Tensor, x: Tensor, v: Tensor) -> None:
    h[x[..., 0] > 0, 1:9] = v[:8] * 2


def in_a_new_dimension(h: Tensor, x: Tensor, v: Tensor) -> None:
    h[None, x > 0] = v.sum()


def beside_indices(h: Tensor, x: Tensor, v: Tensor) -> None:
    h[torch.tensor([0]), x[:, 0, 0] > 0] = v


def in_a_view(h: Tensor, x: Tensor, v: Tensor) -> None:
    h[..., 2:5][x[..., :3] > 0] = v[0]


def one_row(h: Tensor, x: Tensor, v: Tensor) -> None:
    h[x[..., 0] > 0] = v[None, None]


def all_given(h: Tensor, x: Tensor, v: Tensor) -> None:
    h[x[..., 0] > -100] = (x * v).view(-1, 64)


def nothing_taken(h: Tensor, x: Tensor, v: Tensor) -> None:
    h[x[..., 0] > 100] = v


def added(h: Tensor, x: Tensor, v: Tensor) -> None:
    h.index_put_((x[..., 0] > 0,), v, accumulate=True)


def out_of_place(h: Tensor, x: Tensor, v: Tensor) -> Tensor:
    return torch.index_put(h, (x[..., 0] > 0,), v)


WRITES = [
    *(rows, columns, behind_an_ellipsis, behind_a_number, before_a_slice, in_a_new_dimension, beside_indices),
    *(in_a_view, one_row, all_given, nothing_taken, added, out_of_place),
]


class Writes(nn.Module):
    def __init__(self, write: Write, layers: int = 1) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(64, 64) for _ in range(layers)))
        self.value, self.write = nn.Parameter(torch.randn(64)), write

    def forward(self, x: Tensor) -> Tensor:
        h = self.layers(x)
        found = self.write(h, x, self.value)
        return self.layers(torch.sin(h if found is None else found)).square().mean()


@pytest.mark.parametrize("write", WRITES)
def test_gradients_have_eagers_bits(write: Write) -> None:
    torch.manual_seed(0)
    model, x = Writes(write), torch.randn(4, 4, 64)
    eager = copy.deepcopy(model)
    graphopt.optimize(model, "1MiB", cost_model="roofline")
    for module in (model, eager):
        module(x).backward()
    assert same_gradients(model, eager)
    assert len(model.graphopt.session.graphs) == 1


@pytest.mark.fast(2)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_it_is_counted_for_a_mask_that_takes_all(share: float) -> None:
    torch.manual_seed(0)
    model, x = Writes(rows, 6), torch.randn(64, 64, 64)
    x[..., 0] = torch.where(torch.rand(64, 64) < share, 1.0, -1.0)
    plan = graphopt.optimize(copy.deepcopy(model), "1GiB", example_inputs=x).graphopt.plan
    budget = (plan.minimum_bytes + plan.eager_peak_bytes) // 2
    graphopt.optimize(model, budget)
    model(x).backward()
    model.zero_grad()
    assert peak_bytes(lambda: model(x).backward(), [*model.parameters(), x], torch.device("cpu")) <= budget


def test_a_training_step_has_it_too() -> None:
    torch.manual_seed(0)
    model, x = Writes(rows), torch.randn(4, 4, 64)
    eager = copy.deepcopy(model)
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (model, eager)]
    step = graphopt.train_step(model, None, optimizers[0], cost_model="roofline")
    for _ in range(2):
        loss = step(x).loss
        optimizers[1].zero_grad()
        expected = eager(x)
        expected.backward()
        optimizers[1].step()
        assert torch.equal(loss, expected.detach())
    assert all(map(torch.equal, model.parameters(), eager.parameters()))

"""`numerics="reordered"` in models whose blocks set the least budget: several regions of one graph."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import graphopt
from graphopt.device.measure import peak_bytes
from graphopt.problem.pieces import WHOLE
from tests.support.blocks import Attention, Gated, Mlp, Stack

WIDTH = 32
#: Units in the last place of a gradient's largest element, from float64's: what docs/numerics.md says.
ULPS = 32

MODELS = {
    "mlps": (lambda: Stack(*(Mlp(WIDTH) for _ in range(3))), (8, 512), 0.75),
    "attention": (lambda: Stack(Attention(WIDTH), Gated(WIDTH), Attention(WIDTH)), (2, 512), 0.5),
}


def least_bytes(model: nn.Module, x: torch.Tensor, numerics: str) -> int:
    with pytest.raises(graphopt.BudgetError) as raised:
        graphopt.optimize(copy.deepcopy(model), 1000, example_inputs=x, numerics=numerics)  # type: ignore[arg-type]
    return raised.value.minimum_bytes


def ulps_from(exact: torch.Tensor, found: torch.Tensor) -> float:
    unit = torch.finfo(found.dtype).eps * exact.abs().max()
    return float((found.double() - exact).abs().max() / unit)


@pytest.mark.fast(1)
@pytest.mark.parametrize("name", MODELS)
def test_blocks_below_the_floor(name: str) -> None:
    build, shape, most = MODELS[name]
    torch.manual_seed(0)
    plain, x = build(), torch.randn(*shape, WIDTH)
    whole, divided = least_bytes(plain, x, "bitwise"), least_bytes(plain, x, "reordered")
    assert divided <= most * whole
    for budget in (divided, int(0.9 * whole)):
        model = graphopt.optimize(copy.deepcopy(plain), budget, example_inputs=x, numerics="reordered")
        assert model.graphopt.plan.pieces != (WHOLE,)

        def step(model: nn.Module = model) -> None:
            model.zero_grad()
            model(x).backward()

        step()
        eager, exact = copy.deepcopy(plain), copy.deepcopy(plain).double()
        eager(x).backward()
        exact(x.double()).backward()
        for found, other, best in zip(*(each.parameters() for each in (model, eager, exact)), strict=True):
            assert ulps_from(best.grad, found.grad) <= max(ULPS, 8 * ulps_from(best.grad, other.grad))
        model.zero_grad()
        measured = peak_bytes(step, [*model.parameters(), *model.buffers(), x], torch.device("cpu"))
        assert measured <= model.graphopt.plan.peak_bytes <= budget


def test_room_for_everything_changes_no_bits() -> None:
    build, shape, _ = MODELS["attention"]
    torch.manual_seed(0)
    plain, x = build(), torch.randn(*shape, WIDTH)
    model = graphopt.optimize(copy.deepcopy(plain), 10**9, example_inputs=x, numerics="reordered")
    assert model.graphopt.plan.pieces == (WHOLE,)
    model(x).backward()
    plain(x).backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(model.parameters(), plain.parameters(), strict=True))

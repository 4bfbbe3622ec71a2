"""`out=` a part of a buffer: in the graph where bits are eager's, a break as in torch.compile elsewhere."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import graphopt

Write = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]


class Tiled(torch.autograd.Function):
    """A product, tile by tile in one buffer, forward and backward; the second output is None."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, write: Write) -> tuple[torch.Tensor, None]:
        ctx.save_for_backward(x, weight)
        ctx.write = write
        buffer, sums = x.new_empty(16, 64), x.new_zeros(len(x))
        for first in range(0, len(x), 16):
            rows = x[first : first + 16]
            tile = buffer[: len(rows), : len(weight)]
            write(rows, weight.t(), tile)
            sums[first : first + 16] += (tile * 0.5).sum(-1)
        return sums, None

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, _: None) -> tuple[torch.Tensor, torch.Tensor, None]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        buffer = x.new_empty(len(x), 64)
        tile = buffer[:, : len(weight)]
        assert tile.stride(0) == 64
        ctx.write(x, weight.t(), tile)
        tile.copy_(grad.unsqueeze(-1) * 0.5 + tile * 0.0)
        return tile @ weight, torch.zeros_like(weight).addmm_(tile.t(), x), None


class Head(nn.Module):
    def __init__(self, write: Write) -> None:
        super().__init__()
        self.first, self.weight = nn.Linear(8, 8), nn.Parameter(torch.randn(24, 8))
        self.write = write

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        sums, _ = Tiled.apply(self.first(x), self.weight, self.write)
        return sums.square().mean()


def product(x: torch.Tensor, w: torch.Tensor, tile: torch.Tensor) -> None:
    torch.mm(x, w, out=tile)


def with_bias(x: torch.Tensor, w: torch.Tensor, tile: torch.Tensor) -> None:
    torch.addmm(torch.ones(w.shape[1]), x, w, out=tile)


def exact(x: torch.Tensor, w: torch.Tensor, tile: torch.Tensor) -> None:
    torch.add(x @ w, 1.0, out=tile)


def rounded_by_layout(x: torch.Tensor, w: torch.Tensor, tile: torch.Tensor) -> None:
    torch.sigmoid(x @ w, out=tile)


def times_and_added(x: torch.Tensor, w: torch.Tensor, tile: torch.Tensor) -> None:
    torch.add(x @ w, x @ w, alpha=3, out=tile)


def in_columns(x: torch.Tensor, w: torch.Tensor, tile: torch.Tensor) -> None:
    other = x.new_empty(w.shape[1], 2 * len(x))[:, : len(x)].t()
    torch.mm(x, w, out=other)
    tile.copy_(other)


def converted(x: torch.Tensor, w: torch.Tensor, tile: torch.Tensor) -> None:
    torch.add((x @ w).half(), 1.0, out=tile)


CAPTURED = {write.__name__: write for write in (product, with_bias, exact)}
BROKEN = {write.__name__: write for write in (rounded_by_layout, times_and_added, in_columns, converted)}


def bits_are_eagers(write: Write, rows: int) -> nn.Module:
    torch.manual_seed(0)
    model = Head(write)
    eager = copy.deepcopy(model)
    graphopt.optimize(model, "1MiB", cost_model="roofline")
    x = torch.randn(rows, 8)
    for each in (model, eager):
        each(x).backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(model.parameters(), eager.parameters(), strict=True))
    return model


@pytest.mark.parametrize("rows", [16, 40])
@pytest.mark.parametrize("write", CAPTURED)
def test_a_product_into_a_part_is_in_the_graph(write: str, rows: int) -> None:
    model = bits_are_eagers(CAPTURED[write], rows)
    (graph,) = model.graphopt.session.graphs
    assert graph.is_whole_model
    # the buffer of 16 x 64 is not in it
    assert not any("aten.empty" in str(r.module.graph) or "new_empty" in str(r.module.graph) for r in runnables(model))


@pytest.mark.parametrize("write", BROKEN)
def test_where_bits_might_differ_the_graph_breaks(write: str) -> None:
    model = bits_are_eagers(BROKEN[write], 40)
    assert len(model.graphopt.session.graphs) > 1


def runnables(model: nn.Module) -> list[Any]:
    return list(model.graphopt.session.runnables)


def test_what_eager_refuses_is_refused() -> None:
    class Refused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.mm(x, self.weight, out=x.new_empty(4, 8)[:, :4]).sum()

    with pytest.raises(RuntimeError, match="automatic differentiation"):
        Refused()(torch.randn(4, 4))
    model = graphopt.optimize(Refused(), "1MiB", cost_model="roofline")
    with pytest.raises((RuntimeError, graphopt.CaptureError), match="automatic differentiation"):
        model(torch.randn(4, 4)).backward()

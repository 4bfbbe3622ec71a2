"""Graphs for many sizes run without Python between their operators too, whatever sizes are used for."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import graphopt
from graphopt.emit.native import native_runner
from graphopt.emit.program import native

F = nn.functional
pytestmark = pytest.mark.skipif(native_runner() is None, reason="no C++ compiler")

#: What is done with sizes behind a linear layer of 16.
USES: dict[str, Callable[[Tensor], Tensor]] = {
    "the mean's gradient is divided by a whole number": lambda h: h.square().mean(),
    "a whole number stands for a tensor": lambda h: h.sum() / h.shape[1],
    "a product of two does": lambda h: h.square().sum() / (h.shape[0] * h.shape[1]),
    "a fraction stands for a tensor": lambda h: (h / h.shape[1] ** 0.5).square().mean(),
    "a fraction is any number": lambda h: h.var(1).mean() + h.std(),
    "a sum of sizes": lambda h: F.pad(h, (0, 0, 0, 3)).square().mean() + (h[:, 1:] * h[:, :-1]).mean(),
    "a mask": lambda h: (h @ h.mT + torch.full((h.shape[1], h.shape[1]), -1e9).triu(1)).softmax(-1).square().mean(),
    "in half precision": lambda h: (h.bfloat16().sum(1) / h.shape[1]).square().mean() * (1 / h.shape[0]),
    "a mean of batches": lambda h: F.kl_div(h.log_softmax(-1), torch.ones_like(h) / 16, reduction="batchmean"),
}


class Uses(nn.Module):
    """A layer and what is done with its result."""

    def __init__(self, use: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.use = nn.Linear(16, 16), use

    def forward(self, x: Tensor) -> Tensor:
        return self.use(self.layer(x))


@pytest.mark.fast(3)
@pytest.mark.parametrize("use", USES)
def test_a_graph_for_many_sizes_needs_no_python(use: str) -> None:
    torch.manual_seed(0)
    eager = Uses(USES[use])
    model = graphopt.optimize(copy.deepcopy(eager), "16MiB", cost_model="roofline")
    for length in (7, 11, 9, 4):
        x = torch.randn(3, length, 16)
        for each in (model, eager):
            each.zero_grad()
            each(x).backward()
        assert all(torch.equal(a.grad, b.grad) for a, b in zip(model.parameters(), eager.parameters(), strict=True))
    graph = model.graphopt.session.graphs[-1]
    assert graph.symbols.captured
    runnables = [each for compiled in graph.compiled.values() for each in compiled.runnables]
    assert runnables and all(native(each.module) is not None for each in runnables)

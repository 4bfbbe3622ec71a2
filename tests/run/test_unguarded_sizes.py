"""Parts of a model that breaks, captured with sizes of which something is asked that Dynamo does not guard."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import graphopt


class Mixing(nn.Module):
    """Adds up, joins and turns around values of [40, 24], as a seed says, each by a small function of its own.

    Dynamo keeps what it knows of sizes by code, so that the functions of the second model find what those of the first
    one had.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed, self.line = seed, nn.Linear(24, 24)
        self.one, self.other = (nn.Parameter(torch.randn(40, 24)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        choose = random.Random(self.seed)
        values = [self.line(x), x, self.one, self.other]
        for _ in range(14):
            p, q = choose.choice(values[-5:]), choose.choice(values)
            ways: list[Callable[[], Tensor]] = [
                lambda p=p, q=q: p + q,
                lambda p=p, q=q: p * q.tanh(),
                lambda p=p, q=q: torch.cat([p[:20], q[20:]]),
                lambda p=p, q=q: p.mean(0, keepdim=True).expand_as(q) + q,
                lambda p=p, q=q: p.reshape(24, 40).t() + q,
                lambda p=p, q=q: sum(t for t in p.chunk(4, 0)).repeat(4, 1) + q,
                lambda p=p, q=q: self.line(p).relu() + p * q.mean(),
            ]
            values.append(ways[choose.randrange(len(ways))]())
        return torch.stack([t.sin().sum() for t in values[-6:]]).sum()


@pytest.mark.slow
def test_shapes_are_captured_each_where_a_size_would_be_guarded_too_late(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "graphopt"):
        for seed in range(6):
            torch.manual_seed(seed)
            eager, x = Mixing(seed), torch.randn(40, 24)
            model = graphopt.optimize(copy.deepcopy(eager), "10MiB")
            for _ in range(2):
                eager.zero_grad()
                model.zero_grad()
                eager(x).backward()
                model(x).backward()
                assert all(
                    torch.allclose(a.grad, b.grad, rtol=1e-4, atol=1e-6)
                    for a, b in zip(eager.parameters(), model.parameters(), strict=True)
                    if a.grad is not None
                )
    assert "does not guard" in caplog.text

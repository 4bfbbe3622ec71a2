"""A model that sends messages of its own in its forward is still trained on all ranks' gradients."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn, optim
from torch.distributed import _functional_collectives as collectives

import graphopt
from tests.support.ranks import run_ranks

ROWS, WIDTH = 16, 8


class Centred(nn.Module):
    """Its inputs are centred by the mean over all ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        mean = collectives.all_reduce(x.mean(0), "sum", dist.group.WORLD) / dist.get_world_size()
        return self.second(torch.tanh(self.first(x - mean)))


def trained(accumulate: int) -> tuple[list[Tensor], list[Tensor], list[float], list[float]]:
    """Parameters and losses of a loop that sums gradients by hand, and of the step."""
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(Centred())
    eager, model = models
    optimizer = optim.SGD(eager.parameters(), lr=0.1)
    made = optim.SGD(model.parameters(), lr=0.1)
    how = {"accumulate": accumulate, "cost_model": "roofline"}
    step = graphopt.train_step(model, nn.functional.mse_loss, made, **how)  # type: ignore[arg-type]
    expected, found = [], []
    for i in range(3):
        inputs, targets = torch.randn(2, ROWS, WIDTH, generator=torch.Generator().manual_seed(10 * i + dist.get_rank()))
        targets = targets[:, :1]
        parts = zip(inputs.chunk(accumulate), targets.chunk(accumulate), strict=True)
        losses = [nn.functional.mse_loss(eager(x), y) / accumulate / dist.get_world_size() for x, y in parts]
        for each in losses:
            each.backward()
        for parameter in eager.parameters():
            dist.all_reduce(parameter.grad)
        optimizer.step()
        optimizer.zero_grad()
        mean = torch.stack(losses).detach().sum()
        dist.all_reduce(mean)
        expected.append(float(mean))
        found.append(float(step(inputs, targets).loss))
    return [p.detach() for p in eager.parameters()], [p.detach() for p in model.parameters()], expected, found


def test_gradients_are_summed_over_ranks() -> None:
    for accumulate in (1, 2):
        together = run_ranks(2, trained, accumulate)
        for expected, found, losses, own in together:
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
            torch.testing.assert_close(own, losses, rtol=1e-6, atol=0)
        assert all(map(torch.equal, together[0][1], together[1][1]))

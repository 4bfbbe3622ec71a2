"""What compressed gradients of shared parameters take: planned to 2 %, and inside the budget."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn, optim
from torch.distributed.device_mesh import init_device_mesh
from torch.nn import functional as F

import graphopt
from tests.support.ranks import run_ranks
from tests.support.sharded import seeded, step_peak_bytes


class Wide(nn.Module):
    """Blocks whose parameters are a good part of what a step takes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(160, 160) for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + F.gelu(layer(x))
        return x


def peaks(method: Any, how: Any, micros: int, copies: int) -> list[tuple[int, int, int, dict[str, int]]]:
    """Of a tight and a loose budget: budget, planned, measured, and what is resident."""
    made, found = torch.Generator().manual_seed(dist.get_rank()), []
    one = torch.randn(256, 160, generator=made), torch.randn(256, 160, generator=made)
    if copies > 1:
        how = init_device_mesh("cpu", (copies, dist.get_world_size() // copies))

    def build(budget: int | None) -> graphopt.TrainStep:
        model = seeded(Wide)
        options: dict[str, Any] = {"compress": method, "shard": how, "accumulate": micros}
        return graphopt.train_step(
            model, F.mse_loss, optim.AdamW(model.parameters()), budget, example_inputs=one, **options
        )

    loose = build(None)
    least, most = loose.plan.minimum_bytes, loose.plan.peak_bytes
    for share in (0.02, 1.0):
        budget = int(least + share * (most - least))
        step = build(budget)
        step(*one)
        assert step._exchange is not None
        resident = step._memory.highest().resident_bytes
        measured = step_peak_bytes(step, one, step._exchange.tensors)
        found.append((budget, step.plan.peak_bytes, measured, resident))
    return found


@pytest.mark.fast(1)
@pytest.mark.parametrize(
    ("method", "how", "micros", "world"),
    [
        (graphopt.EightBit(), True, 1, 2),
        (graphopt.EightBit(), "gradients", 2, 2),
        (graphopt.HalfCast(torch.bfloat16), True, 1, 2),
        (graphopt.QSGD(4), True, 2, 2),
        (graphopt.EightBit(), True, 1, 4),
    ],
)
def test_steps_stay_inside_their_budgets_and_predictions_hold(method: Any, how: Any, micros: int, world: int) -> None:
    for found in run_ranks(world, peaks, method, how, micros, 2 if world == 4 else 1):
        for budget, planned, measured, resident in found:
            assert measured <= planned <= budget
            assert planned - measured < 0.02 * planned
            kept = isinstance(method, graphopt.EightBit)
            assert resident.get("compression", 0) == (2 * 4 * 5 * 160 * 160 if kept else 0)


def stock_peaks() -> list[tuple[int, int, int, dict[str, int]]]:
    with graphopt.kernels.use("stock"):
        return [cell for how in (graphopt.EightBit(), graphopt.QSGD(8)) for cell in peaks(how, True, 1, 1)]


def test_what_torchs_own_ops_hold_is_counted_too() -> None:
    for budget, planned, measured, _ in run_ranks(2, stock_peaks)[0]:
        assert measured <= planned <= budget
        assert planned - measured < 0.02 * planned

"""Optimizer state in a file on several ranks: each has its own, with the bits of state in memory."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import graphopt
from graphopt.device.elsewhere import holder_of
from tests.support.ranks import run_ranks

WAYS: dict[str, dict[str, Any]] = {
    "all rows": {"shard": True, "clip": graphopt.ClipNorm(0.01)},
    "rows of gradients": {"shard": "gradients", "accumulate": 2},
}


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(128, 512), nn.GELU(), nn.Linear(512, 128))


def same_bits() -> list[str]:
    """What differs between steps with state in memory and in a file, by name."""
    rank, wrong = dist.get_rank(), []
    x, y = (torch.randn(16, 128, generator=torch.Generator().manual_seed(10 * rank + i)) for i in range(2))
    for name, options in WAYS.items():
        steps = []
        for where in (None, "file"):
            model = build()
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
            step = graphopt.train_step(
                model, nn.functional.mse_loss, optimizer, offload_optimizer=where, cost_model="roofline", **options
            )
            losses = [float(step(x, y).loss) for _ in range(2)]
            optimizer.load_state_dict(optimizer.state_dict())
            losses.append(float(step(x, y).loss))
            away = any(holder_of(t) is not None for held in optimizer.state.values() for t in held.values() if t.ndim)
            if away is not (where is not None):
                wrong.append(f"{name}: state is not where it should be")
            steps.append((losses, step.unshard(), optimizer.state_dict()["state"]))
        (losses, model, state), (its_losses, its_model, its_state) = steps
        pairs = [*zip(model.parameters(), its_model.parameters(), strict=True)]
        pairs += [(state[number][key], its_state[number][key]) for number in state for key in state[number]]
        if losses != its_losses or not all(torch.equal(a, b) for a, b in pairs):
            wrong.append(f"{name}: other bits")
    return wrong


def test_state_in_a_file_has_the_bits_of_state_in_memory() -> None:
    assert run_ranks(2, same_bits) == [[], []]

"""Optimizer state in pinned host memory: the bits of state on the GPU, in the bytes that were planned."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import graphopt

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]


@pytest.mark.parametrize(
    "options",
    [{}, {"clip": graphopt.ClipNorm(0.1)}, {"update_in_backward": True}, {"loss_scale": graphopt.DynamicLossScale()}],
    ids=["plain", "clipped", "in the backward", "scaled"],
)
def test_state_in_host_memory_has_the_bits_of_state_on_the_gpu(options: dict[str, Any]) -> None:
    x, y = torch.randn(64, 1024, device="cuda"), torch.randn(64, 1024, device="cuda")
    found, peaks = [], []
    for where in (None, "host"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(1024, 4096), nn.GELU(), nn.Linear(4096, 1024)).cuda()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        step = graphopt.train_step(model, nn.functional.mse_loss, optimizer, offload_optimizer=where, **options)
        losses = [step(x, y).loss for _ in range(4)]
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        losses.append(step(x, y).loss)
        torch.cuda.synchronize()
        peaks.append(torch.cuda.max_memory_allocated())
        assert peaks[-1] <= step.plan.peak_bytes
        states = [t.cpu() for p in model.parameters() for _, t in sorted(optimizer.state[p].items())]
        found.append([*losses, *(p.detach().clone() for p in model.parameters()), *states])
        moments = [t for held in optimizer.state.values() for key, t in held.items() if key != "step" and t.ndim > 1]
        assert all((t.device.type == "cpu") is (where == "host") for t in moments)
        del model, optimizer, step, moments
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert peaks[1] < peaks[0]


def test_saved_state_is_loaded_and_goes_back_to_host_memory() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(1024, 1024).cuda(), torch.randn(8, 1024, device="cuda")
    optimizer = torch.optim.AdamW(model.parameters())
    step = graphopt.train_step(model, nn.functional.mse_loss, optimizer, offload_optimizer="host")
    step(x, x)
    saved = {key: value.clone() for key, value in model.state_dict().items()}, optimizer.state_dict()
    losses = [step(x, x).loss for _ in range(2)]
    del losses
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    step(x, x)
    assert optimizer.state[model.weight]["exp_avg"].device.type == "cpu"

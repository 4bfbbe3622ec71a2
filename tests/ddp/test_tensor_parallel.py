"""optimize() of a model whose parameters are DTensors: eager's bits, shards counted as shards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import graphopt
from graphopt.cost_models.model_state import optimizer_bytes
from tests.support.ranks import run_ranks

WIDTH, ROWS, BLOCKS = 32, 256, 2


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(nn.functional.gelu(self.up(x)))


def parallel(frozen: bool) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(*(Block() for _ in range(BLOCKS)))
    if frozen:  # whose gradient is one None, where its shard and its mesh are two inputs
        model[1].up.weight.requires_grad_(False)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model:
        parallelize_module(block, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    return model


def local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def trained(model: nn.Module) -> list[torch.Tensor]:
    """Losses, gradients and parameters of three steps, of this rank."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    found = []
    for index in range(3):
        inputs = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(index))
        loss = model(inputs).square().mean()
        loss.backward()
        found += [loss.detach(), *(local(p.grad).clone() for p in model.parameters() if p.grad is not None)]
        optimizer.step()
        optimizer.zero_grad()
    return found + [local(parameter.detach()).clone() for parameter in model.parameters()]


def _planned(frozen: bool) -> dict[str, Any]:
    wanted = trained(parallel(frozen))
    roomy = graphopt.optimize(parallel(frozen), "1GiB", cost_model="roofline")
    same = [all(map(torch.equal, wanted, trained(roomy)))]
    least = roomy.graphopt.plan.minimum_bytes
    tight = graphopt.optimize(parallel(frozen), int(1.2 * least), cost_model="roofline")
    same.append(all(map(torch.equal, wanted, trained(tight))))
    shards = sum(local(parameter).nbytes for parameter in tight.parameters())
    whole = sum(parameter.numel() * parameter.element_size() for parameter in tight.parameters())
    return {
        "same": same,
        "recomputed": sum(len(graph.recomputed) for graph in tight.graphopt.plan.graphs),
        "state": optimizer_bytes(torch.optim.AdamW([p for p in tight.parameters() if p.requires_grad])),
        "learned": sum(local(p).nbytes for p in tight.parameters() if p.requires_grad),
        "tensors": sum(p.requires_grad for p in tight.parameters()),
        "counted": tight.graphopt.plan.resident_bytes["parameters"],
        "shards": shards,
        "whole": whole,
        "gradients": len(tight.graphopt.planned_graphs[0].captured.step.joint.gradients),
    }


@pytest.mark.fast(1)
@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_are_eagers_and_shards_are_counted(frozen: bool) -> None:
    for found in run_ranks(2, _planned, frozen):
        assert found["same"] == [True, True] and found["recomputed"]
        assert found["counted"] == found["shards"] < 0.6 * found["whole"]
        # and a count of steps for each
        assert found["state"] == 2 * found["learned"] + 4 * found["tensors"]
        assert found["gradients"] == 4 * BLOCKS - frozen

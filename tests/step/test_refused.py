"""A step that is refused leaves model and optimizer as they were: another budget can be tried."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

import graphopt
from graphopt.step.optimizer.optimizer_step import kind_of_step
from tests.support.ranks import run_ranks


def perceptron(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 33), nn.GELU(), nn.Linear(33, 5)).to(dtype)


def batch(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(16, width, generator=generator).to(dtype) for width in (7, 5))  # type: ignore[return-value]


def losses(refusals: tuple[dict[str, Any], ...], **options: Any) -> list[float]:
    """Of three steps, behind steps that were refused with these options."""
    dtype = torch.bfloat16 if options.get("masters") else torch.float32
    model = perceptron(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    held = [*optimizer.param_groups[0]["params"]]
    shapes = [parameter.shape for parameter in held]
    for each in refusals:
        with pytest.raises(graphopt.GraphoptError) as refused:
            graphopt.train_step(model, nn.functional.mse_loss, optimizer, **{**options, **each})
        assert not isinstance(refused.value, graphopt.RankError)
        assert all(a is b for a, b in zip(held, optimizer.param_groups[0]["params"], strict=True))
        assert [parameter.shape for parameter in model.parameters()] == shapes
        model(batch(dtype)[0])  # it is whole, and may be called
    step = graphopt.train_step(model, nn.functional.mse_loss, optimizer, **options)
    return [float(step(*batch(dtype)).loss) for _ in range(3)]


def refusals(dtype: torch.dtype) -> tuple[dict[str, Any], ...]:
    return {"mem_budget": 3000, "example_inputs": batch(dtype)}, {"mem_budget": "many bytes"}


@pytest.mark.parametrize("masters", [False, True])
def test_in_one_process(masters: bool) -> None:
    dtype = torch.bfloat16 if masters else torch.float32
    assert losses(refusals(dtype), masters=masters) == losses((), masters=masters)


def on_ranks() -> list[bool]:
    same = []
    for shard, masters in (("optimizer", True), ("gradients", False), (True, False), (True, True)):
        dtype = torch.bfloat16 if masters else torch.float32
        pair = [losses(each, shard=shard, masters=masters) for each in (refusals(dtype), ())]
        same.append(pair[0] == pair[1])
    assert dist.get_world_size() == 2
    return same


def test_on_ranks_that_share_out() -> None:
    for same in run_ranks(2, on_ranks):
        assert all(same) and len(same) == 4


def step_of_its_own() -> list[str]:
    said = []
    for shard in ("optimizer", "gradients"):
        for kind, masters in ((torch.optim.AdamW, False), (torch.optim.RMSprop, False), (torch.optim.RMSprop, True)):
            dtype = torch.bfloat16 if masters else torch.float32
            model, inputs = perceptron(dtype), batch(dtype)
            optimizer = kind(model.parameters(), lr=1e-1)
            step = graphopt.train_step(model, nn.functional.mse_loss, optimizer, shard=shard, masters=masters)
            assert kind_of_step(optimizer) == ("adam" if kind is torch.optim.AdamW else "step")
            step(*inputs)
            nn.functional.mse_loss(model(inputs[0]), inputs[1]).backward()
            before = [parameter.detach().clone() for parameter in model.parameters()]
            with pytest.raises(graphopt.UsageError) as refused:
                optimizer.step()
            said.append(str(refused.value))
            assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
            step(*inputs)  # with gradients of a backward between steps
            assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
            step.unshard()
            optimizer.step()
            assert optimizer.state_dict()["state"]
    return said


def test_an_optimizer_of_rows_refuses_a_step_of_its_own() -> None:
    for said in run_ranks(2, step_of_its_own):
        assert len(said) == 6 and all("step.unshard()" in each for each in said)

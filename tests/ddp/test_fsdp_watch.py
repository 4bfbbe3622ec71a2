"""The watch inside of FSDP2: peaks are the profiler's, what FSDP2 holds is named, told once and planned for.

It knows what is private to PyTorch's fully_shard (`graphopt/run/watch/sharding.py`). Where this fails with an
AttributeError, or no step is measured, that has changed.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

import graphopt
from graphopt.device.measure import peak_bytes
from graphopt.run.watch.measured_step import MeasuredStep
from tests.support.ranks import run_ranks
from tests.support.residual_blocks import blocks

ROWS, WIDTH = 256, 64
#: Bytes of a block's parameters, which are also those of each of its messages.
WHOLE = 132_352


@dataclass(frozen=True)
class Trained:
    """A rank's part of a training: parameters at its end, and of each optimized module its steps and plan."""

    parameters: list[np.ndarray[Any, Any]]
    told: list[str]
    histories: list[list[MeasuredStep]]
    resident: list[dict[str, int]]
    predicted: list[int]


def sharded(budget: int | None, per_block: bool, **options: Any) -> nn.Module:
    """Four blocks, sharded whole or by blocks."""
    model, mesh = blocks(4, WIDTH), init_device_mesh("cpu", (dist.get_world_size(),))
    for module in model if per_block else [model]:
        if budget is not None:
            graphopt.optimize(module, budget)
        fully_shard(module, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options) if per_block else model


def optimized(model: nn.Module) -> list[Any]:
    return [module.graphopt for module in model.modules() if hasattr(module, "graphopt")]


def batch(number: int) -> torch.Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(2 * number + dist.get_rank()))


def trained(
    budget: int | None,
    per_block: bool,
    steps: int = 5,
    accumulate: int = 1,
    make: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
    **options: Any,
) -> Trained:
    model = sharded(budget, per_block, **options)
    optimizer = make(model.parameters(), lr=1e-2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(steps):
            optimizer.zero_grad()
            for part in range(accumulate):
                model.set_requires_gradient_sync(part == accumulate - 1)
                model(batch(step * accumulate + part)).square().mean().backward()
            optimizer.step()
    handles = optimized(model)
    return Trained(
        [parameter.detach().to_local().numpy().copy() for parameter in model.parameters()],
        [str(w.message) for w in caught if "a training step took" in str(w.message)],
        [list(handle.history) for handle in handles],
        [dict(handle.plan.resident_bytes) for handle in handles],
        [handle.plan.peak_bytes for handle in handles],
    )


def settled(history: list[MeasuredStep]) -> float:
    """The median of the last steps: gloo's thread lets go of a message in one step sooner, and in another later."""
    return statistics.median(step.measured_bytes for step in history[-5:])


def same(one: Trained, other: Trained) -> bool:
    return all(map(np.array_equal, one.parameters, other.parameters))


def _against_profiler() -> tuple[list[int], list[int]]:
    model, x = sharded(1 << 30, False), batch(0)

    def run() -> None:
        model.zero_grad()
        model(x).square().mean().backward()

    run()
    run()
    model.zero_grad()
    shards = [parameter.to_local() for parameter in model.parameters()]
    seen = [peak_bytes(run, [*shards, x], "cpu") for _ in range(3)]
    return seen, [step.measured_bytes for step in model.graphopt.history][-3:]


def test_what_is_measured_is_what_the_profiler_sees() -> None:
    for seen, measured in run_ranks(2, _against_profiler):
        assert min(seen) == min(measured)


CASES: dict[str, tuple[bool, dict[str, Any]]] = {
    "whole": (False, {}),
    "whole, resharded": (False, {"reshard_after_forward": True}),
    "blocks": (True, {}),
    "blocks, kept": (True, {"reshard_after_forward": False}),
    "blocks, half": (True, {"mp_policy": MixedPrecisionPolicy(torch.bfloat16, torch.float32)}),
}


def _roomy() -> dict[str, tuple[bool, Trained, Trained]]:
    found = {}
    for name, (per_block, options) in CASES.items():
        eager = trained(None, per_block, **options)
        roomy = trained(1 << 30, per_block, **options)
        # what is really needed: the messages of neighbours too
        budget = max(step.measured_bytes for history in roomy.histories for step in history) + 3 * WHOLE
        fitting = trained(max(budget, *roomy.predicted), per_block, **options)
        found[name] = same(eager, fitting), roomy, fitting
    return found


@pytest.mark.slow
def test_a_budget_that_fits_gives_no_warning() -> None:
    for found in run_ranks(2, _roomy):
        for name, (is_same, roomy, fitting) in found.items():
            assert is_same, name
            assert not roomy.told and not fitting.told, (name, roomy.told, fitting.told)
            assert all(len(history) == 5 for history in (*roomy.histories, *fitting.histories)), name


def _tight() -> tuple[Trained, Trained]:
    return trained(None, True, steps=8), trained(1_470_000, True, steps=8)


def test_messages_of_other_blocks_are_told_of_once_and_then_planned_for() -> None:
    for eager, tight in run_ranks(2, _tight):
        assert same(eager, tight)
        inner = [message for message in tight.told if "of '1'. FSDP2" in message or "of '2'. FSDP2" in message]
        assert len(inner) == 2
        for message in inner:
            assert "FSDP2 held 129.2 KiB of reduce-scatter inputs and 129.2 KiB of prefetched blocks" in message
            assert "64.6 KiB more than was planned" in message and "From the next call on" in message
        for place in (1, 2):
            # two messages of a block each, where a plan has its own one and a shard
            assert tight.resident[place]["FSDP2 messages of other blocks"] == WHOLE // 2
            assert max(step.measured_bytes for step in tight.histories[place]) > 1_470_000
            assert settled(tight.histories[place]) <= 1_470_000


def _stays() -> tuple[Trained, Trained]:
    return trained(None, True, 8, 3), trained(1_600_000, True, 8, 3)


def test_gradients_that_stay_are_told_of_once_and_then_planned_for() -> None:
    for eager, stays in run_ranks(2, _stays):
        assert same(eager, stays)
        inner = [message for message in stays.told if "of '1'" in message]
        causes = ("129.2 KiB of gradients of earlier backwards were there", "of reduce-scatter inputs and")
        times = [sum(cause in message for message in inner) for cause in causes]
        # gloo's thread lets go of a message when it likes: the second cause may not come
        assert max(times) == 1 and times[1] <= 1
        assert stays.resident[1]["FSDP2 gradients that stay"] == WHOLE
        assert settled(stays.histories[1][2::3]) <= 1_600_000


def _adam() -> Trained:
    return trained(1 << 30, False, make=torch.optim.AdamW)


def test_the_state_of_the_optimizer_is_that_of_the_shards() -> None:
    for adam in run_ranks(2, _adam):
        # two moments of half of each parameter, and a count
        assert adam.histories[0][-1].state_bytes == 4 * WHOLE + 16 * 4


def _strict() -> str:
    model = blocks(4, WIDTH)
    graphopt.optimize(model, 5_000_000, on_excess="raise")
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    model(batch(0)).square().mean().backward()
    with pytest.raises(graphopt.BudgetError) as raised:
        (model(batch(0)) @ torch.ones(WIDTH, 8192)).softmax(-1).log().mean().backward()
    return str(raised.value)


def test_on_excess_raise_and_a_loss_outside_of_a_model_that_is_sharded_whole() -> None:
    assert all("between the model's forward and its backward" in message for message in run_ranks(2, _strict))

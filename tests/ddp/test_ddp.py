"""optimize() under DistributedDataParallel: eager's gradients, one graph, and the buckets inside the budget."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import graphopt
from graphopt.api.optimize import plan_model
from tests.support.ranks import run_ranks
from tests.support.train_together import settled_peak_bytes

WIDTH, ROWS = 64, 256


class Blocks(nn.Module):
    """A residual MLP with BatchNorm whose last layer runs on demand; activations outweigh parameters."""

    def __init__(self, breaks: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.norms = nn.ModuleList(nn.BatchNorm1d(WIDTH) for _ in range(4))
        self.seldom = nn.Linear(WIDTH, WIDTH)
        self.breaks = breaks

    def forward(self, x: torch.Tensor, is_whole: bool = True) -> torch.Tensor:
        x = self.run(x, 0)
        if self.breaks:
            torch._dynamo.graph_break()
        x = self.run(x, 2)
        return (self.seldom(x) if is_whole else x).square().mean()

    def run(self, x: torch.Tensor, first: int) -> torch.Tensor:
        """Two of the four layers."""
        for layer, norm in zip(self.layers[first : first + 2], self.norms[first : first + 2], strict=True):
            x = x + norm(layer(x)).relu()
        return x


def batches(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + dist.get_rank())
    return [torch.randn(ROWS, WIDTH, generator=generator) for _ in range(count)]


def model_of(seed: int = 0, **options: bool) -> Blocks:
    torch.manual_seed(seed)
    return Blocks(**options)


def least_bytes(**options: bool) -> int:
    """The smallest budget without DDP; asked in the tests' own process, which trains alone."""
    return plan_model(model_of(**options), (torch.randn(ROWS, WIDTH),), mem_budget="1GiB").plan.minimum_bytes


def bucket_bytes(model: nn.Module) -> int:
    return sum(parameter.numel() * 4 for parameter in model.parameters())


def gradients_of(ddp: DistributedDataParallel, is_whole: bool, accumulate: int) -> list[torch.Tensor]:
    """Three steps of SGD; the gradients and buffers of each."""
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    found: list[torch.Tensor] = []
    inputs = iter(batches(3 * accumulate))
    for _ in range(3):
        for micro in range(accumulate):
            with ddp.no_sync() if micro < accumulate - 1 else contextlib.nullcontext():
                ddp(next(inputs), is_whole).backward()
        found += [p.grad.clone() for p in ddp.parameters() if p.grad is not None]
        found += [buffer.clone() for buffer in ddp.buffers()]
        optimizer.step()
        optimizer.zero_grad()
    return found


CASES: dict[str, tuple[dict[str, Any], bool, int]] = {
    "unused, small buckets": ({"find_unused_parameters": True, "bucket_cap_mb": 0.02}, False, 1),
    "static": ({"static_graph": True}, True, 1),
    "static unused": ({"static_graph": True}, False, 1),
    "accumulation": ({}, True, 2),
    "accumulation in views": ({"gradient_as_bucket_view": True, "find_unused_parameters": True}, False, 2),
}


def _broken(budget_bytes: int) -> tuple[bool, int]:
    eager = gradients_of(DistributedDataParallel(model_of(breaks=True)), True, 1)
    model = graphopt.optimize(model_of(breaks=True), budget_bytes, cost_model="roofline")
    mine = gradients_of(DistributedDataParallel(model), True, 1)
    return all(map(torch.equal, eager, mine)), len(model.graphopt.plan.graphs)


def test_a_model_that_breaks_into_graphs() -> None:
    assert run_ranks(2, _broken, least_bytes(breaks=True) + bucket_bytes(model_of())) == [(True, 2), (True, 2)]


def _measured(budget_bytes: int, options: dict[str, Any]) -> tuple[int, int, int]:
    """Predicted and measured peak of a step, and what was planned before it was known that DDP holds buckets."""
    x = batches(1)[0]
    model = graphopt.optimize(model_of(), budget_bytes, example_inputs=x)
    before = model.graphopt.plan.peak_bytes
    ddp = DistributedDataParallel(model, **options)
    for _ in range(2):  # DDP makes its buckets anew after the first step
        ddp(x).backward()
        ddp.zero_grad()
    buckets = torch.empty(bucket_bytes(model), dtype=torch.uint8)  # they were there before the step, unseen

    def run() -> None:
        ddp.zero_grad()
        ddp(x).backward()

    peak = settled_peak_bytes(run, [*ddp.parameters(), *ddp.buffers(), x, buckets])
    return model.graphopt.plan.peak_bytes, peak, before


@pytest.mark.fast(1)
@pytest.mark.parametrize("views", [False, True])
def test_buckets_are_in_the_budget(views: bool) -> None:
    budget_bytes = least_bytes() + bucket_bytes(model_of())
    for predicted, measured, before in run_ranks(2, _measured, budget_bytes, {"gradient_as_bucket_view": views}):
        assert measured <= predicted <= budget_bytes
        assert before <= budget_bytes


def _accumulated(budget_bytes: int, options: dict[str, Any]) -> tuple[list[int], int, int]:
    """Measured peaks of the micro-batches of three steps; a later one's by the profiler, and the plan's."""
    inputs = batches(3)
    model = graphopt.optimize(model_of(), budget_bytes)
    ddp = DistributedDataParallel(model, **options)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    for _ in range(3):
        for micro in range(3):
            with ddp.no_sync() if micro < 2 else contextlib.nullcontext():
                ddp(inputs[micro]).backward()
        optimizer.step()
        optimizer.zero_grad()

    def another() -> None:
        with ddp.no_sync():
            ddp(inputs[0]).backward()

    another()
    views = options.get("gradient_as_bucket_view", False)
    unseen = [torch.empty(0 if views else bucket_bytes(model), dtype=torch.uint8)]
    unseen += [parameter.grad for parameter in ddp.parameters() if parameter.grad is not None]
    peak = settled_peak_bytes(another, [*ddp.parameters(), *ddp.buffers(), inputs[0], *unseen])
    return [step.measured_bytes for step in model.graphopt.history[:9]], peak, model.graphopt.plan.peak_bytes


@pytest.mark.fast(1)
@pytest.mark.parametrize("views", [False, True])
def test_gradients_that_stay_are_in_the_budget_and_measured(views: bool) -> None:
    room = bucket_bytes(model_of()) * (1 if views else 2)
    budget_bytes = least_bytes() + room
    for history, measured, predicted in run_ranks(2, _accumulated, budget_bytes, {"gradient_as_bucket_view": views}):
        assert len(history) == 9 and max(history) <= budget_bytes
        assert measured <= predicted <= budget_bytes
        assert abs(history[-1] - measured) <= 4096


def _too_small(budget_bytes: int) -> tuple[str, int]:
    ddp = DistributedDataParallel(graphopt.optimize(model_of(), budget_bytes))
    try:
        ddp(batches(1)[0])
    except graphopt.BudgetError as error:
        return str(error), error.minimum_bytes
    return "", 0


def test_the_minimum_counts_the_buckets() -> None:
    least = least_bytes()
    one, other = run_ranks(2, _too_small, least)
    assert one == other and one[1] > least and "DDP buckets" in one[0]


def _already_wrapped() -> list[str]:
    found = []
    wrapped = DistributedDataParallel(model_of())
    for model in (wrapped, nn.Sequential(wrapped)):
        with pytest.raises(graphopt.UsageError, match="before wrapping") as error:
            graphopt.optimize(model, "64MiB")
        found.append(str(error.value))
    return found


def test_a_wrapped_model_is_refused() -> None:
    (alone, inside), _ = run_ranks(2, _already_wrapped)
    assert "(" in alone and "'0'" in inside


def _compare(budget_bytes: int) -> dict[str, tuple[bool, int, int, bool]]:
    found = {}
    for name, (options, is_whole, accumulate) in CASES.items():
        eager = gradients_of(DistributedDataParallel(model_of(), **options), is_whole, accumulate)
        model = graphopt.optimize(model_of(), budget_bytes)
        mine = gradients_of(DistributedDataParallel(model, **options), is_whole, accumulate)
        is_same = len(eager) == len(mine) and all(map(torch.equal, eager, mine))
        plan = model.graphopt.plan
        found[name] = is_same, len(plan.graphs), len(plan.recomputed), torch._dynamo.config.optimize_ddp
    return found


def test_gradients_are_eager_ddps_bit_by_bit_in_one_recomputing_graph() -> None:
    # buckets, and the gradients that stay between micro-batches
    budget_bytes = least_bytes() + 2 * bucket_bytes(model_of())
    for found in run_ranks(2, _compare, budget_bytes):
        for name, (is_same, graphs, recomputed, optimize_ddp) in found.items():
            assert is_same and graphs == 1 and recomputed, name
            assert optimize_ddp is True  # the user's setting stays

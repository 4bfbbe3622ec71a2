"""Several processes make one plan: the same on all, or the same error on all, and never a wait without end."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import graphopt
from graphopt.api.optimize import plan_model
from tests.support.ranks import run_ranks

WIDTH, ROWS = 32, 128


class Model(nn.Module):
    """A small MLP; `odd` makes it do something else in the middle."""

    def __init__(self, odd: str = "") -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.odd = odd

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers[:2]:
            x = x + layer(x).relu()
        if self.odd == "sine":
            x = x.sin()
        if self.odd == "break":
            torch._dynamo.graph_break()
        if self.odd == "raises":
            raise ValueError("this model does not like its input")
        for layer in self.layers[2:]:
            x = x + layer(x).relu()
        return x.square().mean()


def model_of(odd: str = "") -> Model:
    torch.manual_seed(0)
    return Model(odd)


def batch(rows: int = ROWS) -> torch.Tensor:
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(1))


def least_bytes(odd: str = "") -> int:
    """The smallest budget; asked in the tests' own process, which trains alone."""
    return plan_model(model_of(odd), (batch(),), mem_budget="1GiB", cost_model="roofline").plan.minimum_bytes


def raised(run: Callable[[], object]) -> tuple[str, str]:
    try:
        run()
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""


def _schedules(budget_bytes: int, odd: str) -> tuple[Any, ...]:
    planner = "sqrt_n" if dist.get_rank() else "auto"  # who plans is seen by what comes out
    model = graphopt.optimize(
        model_of(odd), budget_bytes, example_inputs=batch(), planner=planner, cost_model="roofline"
    )
    plan = model.graphopt.plan
    model(batch()).backward()
    return plan, [graph.schedule for graph in plan.graphs], str(model.graphopt.report) != ""


@pytest.mark.fast(1)
@pytest.mark.parametrize("odd", ["", "break"])
def test_all_ranks_have_the_first_ones_plan(odd: str) -> None:
    one, other = run_ranks(2, _schedules, int(least_bytes(odd) * 1.1), odd)
    assert one[1] == other[1] and one[0].recomputed
    assert one[0].planner == other[0].planner == "auto"


def _different(odd_of_last: str, rows_of_last: int, is_wrapped: bool) -> tuple[str, str]:
    is_last = dist.get_rank() == dist.get_world_size() - 1
    model = model_of(odd_of_last if is_last else "")
    x = batch(rows_of_last if is_last else ROWS)
    if not is_wrapped:
        return raised(lambda: graphopt.optimize(model, "64MiB", cost_model="roofline", example_inputs=x))
    ddp = DistributedDataParallel(graphopt.optimize(model, "64MiB", cost_model="roofline"))
    return raised(lambda: ddp(x).backward())


@pytest.mark.parametrize("is_wrapped", [False, True])
def test_another_graph_is_an_error_on_all_that_names_the_op_and_its_line(is_wrapped: bool) -> None:
    found = run_ranks(4 if is_wrapped else 2, _different, "sine", ROWS, is_wrapped)
    assert len(set(found)) == 1
    kind, message = found[0]
    assert kind == "PlanMismatchError"
    last = 3 if is_wrapped else 1
    assert f"rank {last} captured another graph than rank 0: rank 0 has " in message
    assert re.search(rf"where rank {last} has sin\S* = aten.sin.default .* at \S*test_agreement.py:\d+", message)


def test_one_graph_and_two_are_different() -> None:
    (kind, message), other = run_ranks(2, _different, "break", ROWS, False)
    assert (kind, message) == other and "rank 0 has 1 of them, rank 1 has 2" in message


def test_examples_of_other_shapes_are_different() -> None:
    (kind, message), other = run_ranks(2, _different, "", ROWS // 2, False)
    assert (kind, message) == other and kind == "PlanMismatchError" and f"({ROWS // 2}, {WIDTH})" in message


def _own_budget(budgets: list[int]) -> tuple[tuple[str, str], int, tuple[Any, ...]]:
    model = model_of()
    found = raised(
        lambda: graphopt.optimize(model, budgets[dist.get_rank()], cost_model="roofline", example_inputs=batch())
    )
    if found[0]:
        return found, 0, ()
    plan = model.graphopt.plan
    return found, plan.peak_bytes, plan.graphs[0].schedule


def test_the_rank_with_the_least_room_decides() -> None:
    least = least_bytes()
    roomy, tight = run_ranks(2, _own_budget, [64 << 20, int(least * 1.05)])
    assert roomy == tight and roomy[1] <= least * 1.05


def test_a_budget_too_small_on_one_rank_is_so_on_all() -> None:
    one, other = run_ranks(2, _own_budget, [64 << 20, least_bytes() // 2])
    assert one == other and one[0][0] == "BudgetError" and "rank 1 has the least room" in one[0][1]


def test_a_rank_that_fails_before_it_plans_fails_all() -> None:
    one, other = run_ranks(2, _different, "raises", ROWS, True)
    assert other == ("ValueError", "this model does not like its input")
    assert one[0] == "RankError" and "rank 1: ValueError: this model does not like its input" in one[1]


def _trains_nothing() -> tuple[str, str]:
    model = model_of()
    ddp = DistributedDataParallel(graphopt.optimize(model, "64MiB", cost_model="roofline"))
    if dist.get_rank() == 1:
        model.requires_grad_(False)
    return raised(lambda: ddp(batch()))


def test_a_rank_without_a_graph_to_plan_keeps_nobody_waiting() -> None:
    one, other = run_ranks(2, _trains_nothing)
    assert one == other and one[0] == "PlanMismatchError"


def _shapes_of_their_own() -> tuple[list[float], list[float]]:
    """Numbers of rows that only this rank has, one of them twice."""
    sizes = [ROWS, 64, 64, 16] if dist.get_rank() else [96, 96, 48, 32]
    found: list[list[float]] = []
    for is_optimized in (False, True):
        model = graphopt.optimize(model_of(), "64MiB", cost_model="roofline") if is_optimized else model_of()
        ddp = DistributedDataParallel(model)
        for size in sizes:
            ddp(batch(size)).backward()
        found.append([float(p.grad.double().sum()) for p in model.parameters()])
    return found[0], found[1]


def test_shapes_that_only_one_rank_has_are_planned_by_it_alone() -> None:
    for eager, mine in run_ranks(2, _shapes_of_their_own):
        assert eager == mine


def _alone() -> int:
    """A group of one: the others are not waited for."""
    groups = [dist.new_group([rank]) for rank in range(dist.get_world_size())]
    if dist.get_rank() == 0:
        return 0
    model = graphopt.optimize(
        model_of(), "64MiB", cost_model="roofline", example_inputs=batch(), group=groups[dist.get_rank()]
    )
    return len(model.graphopt.plan.graphs)


def test_a_group_of_one_plans_alone() -> None:
    assert run_ranks(2, _alone) == [0, 1]


def _nobody_comes() -> tuple[str, str]:
    group = dist.new_group(timeout=timedelta(seconds=2))
    if dist.get_rank() == 1:
        return "", ""
    return raised(
        lambda: graphopt.optimize(model_of(), "64MiB", cost_model="roofline", example_inputs=batch(), group=group)
    )


def test_a_rank_that_never_comes_is_an_error_after_the_groups_timeout() -> None:
    (kind, message), _ = run_ranks(2, _nobody_comes)
    assert kind == "RankError" and "rank 0 waited in vain" in message

"""What a graph may cost in a chain: schedules that are valid, priced as they are run, and checkpointing among them."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from graphopt.api.optimize import plan_model
from graphopt.graph.captured_graph import CapturedGraph
from graphopt.plan.block_points import BlockPoint, block_point, block_points, checkpointed
from graphopt.problem.schedule import check_schedule, simulate
from tests.support.problems import random_problem

ROWS, WIDTH = 64, 32
ROW_BYTES = 4 * ROWS * WIDTH


class Block(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.one, self.two, self.dropout = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH), nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.dropout(self.two(nn.functional.gelu(self.one(x))))


def captured(dropout: float = 0.0) -> CapturedGraph:
    inputs = torch.randn(ROWS, WIDTH, requires_grad=True)
    return plan_model(Block(dropout), (inputs,), mem_budget="1GiB", cost_model="roofline").planned_graphs[0].captured


def dominates(one: BlockPoint, other: BlockPoint) -> bool:
    costs = [(p.kept_bytes, p.seconds, p.backward_bytes, p.forward_bytes) for p in (one, other)]
    return one is not other and all(a <= b for a, b in zip(*costs, strict=True))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_points_are_valid_and_none_is_for_nothing(dropout: float) -> None:
    graph = captured(dropout)
    points = block_points(graph)
    for point in points:
        check_schedule(graph.problem, point.schedule)
        assert point == block_point(graph, point.schedule)
        assert not any(dominates(other, point) for other in points)
    # the least is what torch's checkpoint keeps: the output; and with it, a state of the generator
    least = min(point.kept_bytes for point in points)
    assert ROW_BYTES <= least <= ROW_BYTES + (6000 if dropout else 0)
    eager = block_point(graph, graph.captured_schedule)
    assert min(point.seconds for point in points) == eager.seconds
    if not dropout:  # whose mask is kept as it is, or as a state
        assert eager.kept_bytes == ROW_BYTES + 2 * 4 * ROW_BYTES  # and what gelu and the second layer read


def test_checkpointing_is_torchs() -> None:
    """Everything that the backward reads is computed once more behind the boundary, and nothing else."""
    graph = captured()
    problem, boundary = graph.problem, graph.step.boundary
    point = block_point(graph, checkpointed(problem, boundary, graph.captured_schedule))
    assert point.kept_bytes == ROW_BYTES
    times = Counter(point.schedule)
    again = {problem.ops[op].name for op, count in times.items() if count > 1}
    assert again and max(times.values()) == 2
    assert "addmm" in again and "add" not in again, "nobody reads the output in the backward"
    forward = [op.seconds for op in problem.ops if not op.backward]
    assert point.seconds <= problem.seconds + sum(forward)
    better = [p for p in block_points(graph) if p.kept_bytes <= point.kept_bytes and p.seconds <= point.seconds]
    assert min(p.backward_bytes for p in better) <= point.backward_bytes


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
def test_checkpointed_schedules_are_valid(seed: int) -> None:
    """Of any problem with a boundary: all that may run once runs before it, once."""
    problem = random_problem(seed, training=True)
    boundary = problem.first_backward
    if boundary >= len(problem.ops) or not boundary:
        return
    schedule = checkpointed(problem, boundary, tuple(range(len(problem.ops))))
    check_schedule(problem, schedule)
    place = schedule.index(boundary)
    assert set(schedule[:place]) == set(range(boundary))
    again = [op for op in schedule[place + 1 :] if op < boundary]
    assert all(problem.ops[op].recomputable for op in again)
    assert simulate(problem, schedule).seconds <= 2 * problem.seconds * (1 + 1e-9)

"""Two lanes: what transfers cost beside what computes, and when they run."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch import nn

from graphopt.capture.read_joint import build_step_graph
from graphopt.graph.captured_graph import CapturedGraph
from graphopt.graph.step_graph import to_problem
from graphopt.graph.transfers import fetched_values, graph_with_transfers, placed
from graphopt.kernels.offload.link import DepotLink
from graphopt.plan.offload.candidates import fetch_seconds
from graphopt.plan.offload.lanes import moved_bytes, run_lanes
from graphopt.plan.offload.placing import placed_transfers
from graphopt.planners import Study, pareto_curve
from graphopt.problem.schedule import check_schedule, simulate
from tests.support.joint import joint_graph

WIDTH, ROWS, BLOCKS = 64, 512, 4
VALUE_BYTES = WIDTH * ROWS * 4


class Chain(nn.Module):
    """Products alone, each of whose results the backward reads."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(BLOCKS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x.sum()


@pytest.fixture(scope="module")
def graph() -> CapturedGraph:
    """Every op takes a second."""
    joint, static = joint_graph(Chain(), torch.randn(ROWS, WIDTH))
    step = build_step_graph(joint, static)
    count = len(step.compute_nodes)
    return CapturedGraph("graph", "", step, to_problem(step, [1.0] * count, [0] * count))


def link_of(seconds: float) -> DepotLink:
    """One that takes so long for a value, either way."""
    return DepotLink(VALUE_BYTES / seconds, VALUE_BYTES / seconds, 0.0)


def moving(graph: CapturedGraph, link: DepotLink, share: float = 0.1) -> CapturedGraph:
    seconds = fetch_seconds(graph, link, share)
    return graph_with_transfers(graph, sorted(seconds), seconds)


def test_what_the_backward_reads_and_is_large_may_be_moved(graph: CapturedGraph) -> None:
    names = [graph.step.ops[op].name for op in fetch_seconds(graph, link_of(0.5), 1.0)]
    assert names == ["mm", "mm_1", "mm_2"]  # the last product is only summed up
    # made again, a product takes a second, and longer where what it is made of is gone
    assert fetch_seconds(graph, link_of(5.0), 1.0) == {}
    assert len(fetch_seconds(graph, link_of(5.0), 0.1)) == 3


def test_a_captured_schedule_moves_nothing_and_takes_what_it_took(graph: CapturedGraph) -> None:
    form = moving(graph, link_of(0.5))
    before, after = simulate(graph.problem, graph.captured_schedule), simulate(form.problem, form.captured_schedule)
    assert after.peak_bytes == before.peak_bytes
    assert fetched_values(form.step, form.captured_schedule) == {}
    lanes = run_lanes(form.step, form.problem, form.captured_schedule, link_of(0.5))
    assert lanes.seconds == pytest.approx(before.seconds) and lanes.waited_seconds == 0


@pytest.mark.parametrize("seconds", [0.25, 1.0, 3.0])
def test_lanes_by_hand(graph: CapturedGraph, seconds: float) -> None:
    """The first product goes out behind itself, and is fetched right where it is read."""
    link, op = link_of(seconds), next(i for i, op in enumerate(graph.step.ops) if op.name == "mm")
    form = graph_with_transfers(graph, [op], {op: seconds})
    fetch, settle = placed(len(graph.step.ops), [op]).fetch(op), placed(len(graph.step.ops), [op]).settle(op)
    reader = next(
        i for i, o in enumerate(form.step.ops) if o.backward and set(o.inputs) & set(form.step.ops[fetch].outputs)
    )
    order = list(form.captured_schedule)
    order.remove(settle)
    order.insert(order.index(form.step.boundary), settle)  # behind all of the forward
    order.insert(order.index(reader), fetch)
    lanes = run_lanes(form.step, form.problem, tuple(order), link)
    forward_seconds = sum(1 for o in form.step.ops[: form.step.boundary] if o.node is not None)
    late = max(0.0, seconds - (forward_seconds - 1))  # of the write, which begins behind the first op
    compute = simulate(graph.problem, graph.captured_schedule).seconds
    assert lanes.seconds == pytest.approx(compute + late + seconds)
    assert lanes.written[op] == pytest.approx(1 + seconds)
    assert moved_bytes(form.step, form.problem, tuple(order)) == 2 * VALUE_BYTES


@pytest.mark.parametrize("seconds", [0.05, 0.5, 1.5, 4.0])
@pytest.mark.parametrize("share", [0.1, 1.0])
def test_placed_transfers_keep_to_the_budget_and_wait_less(graph: CapturedGraph, seconds: float, share: float) -> None:
    link = link_of(seconds)
    form = moving(graph, link, share)
    if not form.moved:
        pytest.skip("such a link is not worth it")
    for point in pareto_curve(Study(form.problem)):
        raw = run_lanes(form.step, form.problem, point.schedule, link).seconds
        for slack in (0, VALUE_BYTES, 10 * VALUE_BYTES):
            budget = point.peak_bytes + slack
            schedule, simulation = placed_transfers(form, point.schedule, link, budget)
            check_schedule(form.problem, schedule)
            assert sorted(schedule) == sorted(point.schedule)
            assert simulate(form.problem, schedule).peak_bytes <= budget
            assert simulation.peak_bytes <= budget and simulation.seconds <= raw + 1e-9


def test_with_room_transfers_hide_behind_what_computes(graph: CapturedGraph) -> None:
    """Everything is moved, over a link that takes a fifth of an op for each: nothing waits but for the last values."""
    link = link_of(0.2)
    form = moving(graph, link)
    curve = pareto_curve(Study(form.problem))
    tightest = curve[0]
    assert fetched_values(form.step, tightest.schedule)
    compute = simulate(graph.problem, graph.captured_schedule).seconds
    schedule, simulation = placed_transfers(form, tightest.schedule, link, tightest.peak_bytes + VALUE_BYTES)
    assert simulation.seconds <= compute + 2 * 0.2
    assert moved_bytes(form.step, form.problem, schedule) > 0


def test_random_orders_are_placed_in_their_budget(graph: CapturedGraph) -> None:
    """What planners never give: values fetched at any place, twice, apart from their op."""
    link = link_of(0.7)
    form = moving(graph, link)
    ops = form.step.ops
    draw = random.Random(0)
    for _ in range(60):
        order = list(form.captured_schedule)
        for _ in range(draw.randint(1, 4)):
            fetch = draw.choice([i for i, op in enumerate(ops) if op.transfer is not None and op.transfer.is_fetch])
            order.insert(draw.randint(order.index(form.step.boundary) + 1, len(order)), fetch)
        schedule = check_schedule(form.problem, order)
        before = simulate(form.problem, schedule).peak_bytes
        found, simulation = placed_transfers(form, schedule, link, before)
        check_schedule(form.problem, found)
        assert simulation.peak_bytes <= before


def test_what_must_not_be_moved_stays(graph: CapturedGraph) -> None:
    """What is returned, for one."""
    step = graph.step
    second = next(op for op in step.ops if op.name == "mm_1")
    outputs = replace(graph.problem, outputs=(*graph.problem.outputs, *second.outputs))
    names = [step.ops[op].name for op in fetch_seconds(replace(graph, problem=outputs), link_of(0.5), 1.0)]
    assert names == ["mm", "mm_2"]

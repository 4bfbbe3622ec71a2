"""One budget over several graphs: their common peak, and who gets what."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from torch import nn

from graphopt.base.errors import InfeasibleError
from graphopt.capture.capture_graph import capture_graph
from graphopt.plan.choice import Choice
from graphopt.plan.graph_study import GraphStudy
from graphopt.plan.pipeline import plan_graph
from graphopt.plan.shares import joint_peak_bytes, share_budget, smallest_peak_bytes
from tests.support.joint import joint_graph


@cache
def captured() -> GraphStudy:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(32, 32), nn.GELU()) for _ in range(4)))
    joint, static = joint_graph(model, torch.randn(128, 32, requires_grad=True))
    return GraphStudy(capture_graph(joint, static, "roofline", "piece"))


def test_one_graph_has_its_own_peak() -> None:
    graph = captured()
    assert joint_peak_bytes([graph], [graph.graph.captured_schedule]) == graph.eager.peak_bytes
    assert smallest_peak_bytes([graph]) == graph.minimum_bytes


def test_graphs_hold_what_they_save_while_others_run() -> None:
    graph = captured()
    boundary = graph.graph.step.boundary
    saved = int(graph.eager.live_bytes[boundary])
    both = joint_peak_bytes([graph, graph], [graph.graph.captured_schedule] * 2)
    assert saved + graph.eager.peak_bytes <= both <= 2 * graph.eager.peak_bytes


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 1.0])
def test_shares_keep_to_the_budget(share: float) -> None:
    graph = captured()
    graphs = [graph, copy.copy(graph), copy.copy(graph)]
    least = smallest_peak_bytes(graphs)
    most = joint_peak_bytes(graphs, [graph.graph.captured_schedule] * 3)
    budget = int(least + share * (most - least))
    planned = [plan_graph(g, s, Choice()) for g, s in zip(graphs, share_budget(graphs, budget), strict=True)]
    assert joint_peak_bytes(graphs, [p.plan.schedule for p in planned]) <= budget
    assert (sum(p.plan.seconds for p in planned) == sum(g.eager.seconds for g in graphs)) == (share == 1.0)


def test_too_little_for_all_of_them_is_infeasible() -> None:
    graphs = [captured(), copy.copy(captured())]
    least = smallest_peak_bytes(graphs)
    with pytest.raises(InfeasibleError) as caught:
        share_budget(graphs, least - 1)
    assert caught.value.minimum_bytes == least

"""`graphopt.to_networkx` on planned models and training steps: the graph says what the plan says."""

from __future__ import annotations

import networkx as nx
import pytest
import torch
from torch import nn

import graphopt
from graphopt.base.errors import UsageError
from graphopt.formats.graph_file import to_graphml


class Broken(nn.Module):
    """Breaks into two graphs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = mlp(2), mlp(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        torch._dynamo.graph_break()
        return self.second(x)


def mlp(blocks: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*[m for _ in range(blocks) for m in (nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 32))])


def test_the_graph_of_a_planned_model_says_what_its_plan_says() -> None:
    inputs = torch.randn(256, 32)
    least = graphopt.estimate(mlp(), inputs, cost_model="roofline").minimum_bytes
    model = graphopt.optimize(mlp(), 2 * least, example_inputs=inputs, cost_model="roofline")
    graph, plan = graphopt.to_networkx(model.graphopt), model.graphopt.plan
    assert nx.is_directed_acyclic_graph(graph)
    ops = [data for data in graph.nodes.values() if data["kind"] == "op"]
    assert sum(data["seconds"] for data in ops) == pytest.approx(plan.graphs[0].eager_seconds)
    assert sum(data["seconds"] * len(data["steps"].split()) for data in ops) == pytest.approx(plan.graphs[0].seconds)
    again = {data["name"]: len(data["steps"].split()) - 1 for data in ops if data["recomputed"]}
    assert plan.recomputed and again == {name: plan.recomputed.count(name) for name in plan.recomputed}
    kept = {data["name"]: data["bytes"] for data in graph.nodes.values() if data.get("kept")}
    assert kept == {checkpoint.value: checkpoint.bytes for checkpoint in plan.checkpoints}
    gelu = next(data for data in ops if data["target"] == "aten.gelu.default")
    assert gelu["module_path"] == "1" and not gelu["backward"] and gelu["recomputable"]
    kinds = {data["kind"] for data in graph.nodes.values()}
    assert kinds == {"op", "resident", "activations", "outputs", "tangents", "gradients"}
    assert nx.parse_graphml(to_graphml(graph)).adj == graph.adj


def test_without_prices_a_captured_graph_has_none() -> None:
    model = graphopt.optimize(mlp(), "1GiB", example_inputs=torch.randn(8, 32), cost_model="roofline")
    graph = graphopt.to_networkx(model.graphopt.planned_graphs[0].captured.step)
    ops = [data for data in graph.nodes.values() if data["kind"] == "op"]
    assert ops and not any("seconds" in data or "workspace_bytes" in data or "steps" in data for data in ops)


def test_several_graphs_stand_beside_each_other() -> None:
    model = graphopt.optimize(Broken(), "1GiB", example_inputs=torch.randn(8, 32), cost_model="roofline")
    graph = graphopt.to_networkx(model.graphopt)
    assert {data["graph"] for data in graph.nodes.values()} == {"graph 1", "graph 2"}
    assert {name.partition(".")[0] for name in graph} == {"graph1", "graph2"}
    assert any("test_to_networkx.py" in data.get("source", "") for data in graph.nodes.values())
    assert nx.number_weakly_connected_components(graph) == 2


def test_a_training_step_gives_its_micro_batches() -> None:
    model, batch = mlp(), (torch.randn(8, 32), torch.randn(8, 32))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"cost_model": "roofline", "accumulate": 2}
    step = graphopt.train_step(model, nn.functional.mse_loss, optimizer, **options)
    with pytest.raises(UsageError, match="nothing is planned yet"):
        graphopt.to_networkx(step)
    step(*batch)
    graph = graphopt.to_networkx(step)
    assert nx.is_directed_acyclic_graph(graph)
    written = [graph.nodes[value] for data in graph.nodes.values() for value in data.get("writes", "").split()]
    assert written and all(data["kind"] == "resident" for data in written)  # the sums of gradients


def test_a_schedule_goes_with_a_problem() -> None:
    model = graphopt.optimize(mlp(), "1GiB", cost_model="roofline")
    with pytest.raises(UsageError, match="nothing is planned yet"):
        graphopt.to_networkx(model.graphopt)
    with pytest.raises(UsageError, match="goes with a Problem"):
        graphopt.to_networkx(model.graphopt, (0, 1))

"""The backward for all tangents, from what is saved for a backward that has fewer."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from graphopt.capture.capture_graph import capture_graph
from graphopt.emit.emit import emit
from graphopt.emit.whole_backward import emit_beside_whole
from graphopt.graph.captured_graph import CapturedGraph
from graphopt.graph.joint import is_tangent
from graphopt.plan.graph_study import GraphStudy
from tests.support.joint import joint_graph, leaves, text_of


class Beside(nn.Module):
    """A loss, and an output with a dropout of its own that reads what the loss's backward does not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4, 4))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = (x @ self.first).sin()
        k = (h @ self.second).cos()
        beside = nn.functional.dropout(k * 2, 0.5).exp() * k.tanh()
        return k.sum(), beside


@cache
def captured(defined: frozenset[int]) -> CapturedGraph:
    torch.manual_seed(0)
    joint, static = joint_graph(Beside(), torch.randn(3, 4))
    return capture_graph(joint, static, "roofline", "model", tangents=lambda _: defined)


def test_what_cannot_be_made_again_is_saved_and_nothing_else() -> None:
    graph = captured(frozenset({0}))
    assert graph.whole is not None and graph.whole.kept == {"dropout_mask"}
    kept = [graph.step.values[value].name for value in graph.step.outputs]
    assert "dropout_mask" in kept
    assert captured(frozenset({1})).whole.kept == frozenset()  # type: ignore[union-attr]


def test_both_backwards_take_the_same_inputs() -> None:
    graph = captured(frozenset({0}))
    assert graph.whole is not None
    emitted = emit_beside_whole(graph.step, graph.captured_schedule, graph.whole)
    assert emitted.whole_backward is not None
    assert text_of(emitted.forward.graph).splitlines()[-1] == (
        "return (sum_1, mul_1, mm_1, sin, primals_3, mm, primals_2, dropout_mask)"
    )
    names = [node.name for node in emitted.backward.graph.find_nodes(op="placeholder")]
    assert names == ["mm_1", "sin", "primals_3", "mm", "primals_2", "dropout_mask", "tangents_1", "tangents_2"]
    assert [node.name for node in emitted.whole_backward.graph.find_nodes(op="placeholder")] == names
    again = [node.name for node in emitted.whole_backward.graph.nodes if node.name.endswith("_recomputed")]
    assert again == ["cos_recomputed", "mul_recomputed", "dropout_recomputed", "exp_recomputed", "tanh_recomputed"]
    assert not any(node.name.endswith("_recomputed") for node in emitted.backward.graph.nodes)


def run(graph: CapturedGraph, schedule: tuple[int, ...]) -> list[torch.Tensor]:
    """All gradients, through the whole backward where there is one."""
    emitted = (
        emit(graph.step, schedule) if graph.whole is None else emit_beside_whole(graph.step, schedule, graph.whole)
    )
    torch.manual_seed(1)

    def real(node: Any) -> torch.Tensor:
        return torch.randn(node.meta["val"].shape)

    inputs = emitted.forward.graph.find_nodes(op="placeholder")
    outputs = list(emitted.forward([real(node) for node in inputs]))
    tangents = [real(node) for node in emitted.backward.graph.find_nodes(op="placeholder") if is_tangent(node)]
    backward = emitted.whole_backward or emitted.backward
    return leaves(backward([*outputs[len(graph.step.joint.forward_outputs) :], *tangents]))


@pytest.mark.parametrize("defined", [frozenset({0}), frozenset({1})])
def test_gradients_are_those_of_the_graph_with_all_tangents_under_every_schedule(defined: frozenset[int]) -> None:
    graph, full = captured(defined), captured(frozenset({0, 1}))
    expected = run(full, full.captured_schedule)
    schedules = {candidate.schedule for candidate in GraphStudy(graph).curve}
    assert len(schedules) > 1
    for schedule in schedules:
        assert all(map(torch.equal, run(graph, schedule), expected))


def test_the_graph_without_a_choice_is_as_it_was() -> None:
    joint, static = joint_graph(Beside(), torch.randn(3, 4))
    plain = capture_graph(joint, static, "roofline", "model")
    assert plain.whole is None and replace(plain) == plain
    assert captured(frozenset({0, 1})).step.graph_hash == plain.step.graph_hash
    assert captured(frozenset({0})).step.graph_hash == f"{plain.step.graph_hash}-0"

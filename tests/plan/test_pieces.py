"""In how many pieces a graph is planned: guessed from the whole, so that few forms are made."""

from __future__ import annotations

import pytest
import torch

import graphopt
from graphopt.graph.captured_graph import CapturedGraph
from graphopt.plan.graph_study import GraphStudy
from graphopt.plan.in_proportion import in_proportion
from graphopt.plan.pieces import smallest_forms
from graphopt.problem.pieces import WHOLE, Pieces
from tests.support.blocks import Mlp, Stack

WIDTH, ROWS = 32, 4096


@pytest.fixture(scope="module")
def graph() -> CapturedGraph:
    torch.manual_seed(0)
    x = torch.randn(ROWS, WIDTH)
    model = graphopt.optimize(Stack(Mlp(WIDTH), Mlp(WIDTH)), 10**9, example_inputs=x, numerics="reordered")
    (planned,) = model.graphopt.in_force.planned  # type: ignore[union-attr]
    return planned.captured  # type: ignore[no-any-return]


def test_values_in_proportion(graph: CapturedGraph) -> None:
    assert in_proportion(graph, 1) == graph.problem
    in_four = in_proportion(graph, 4)
    sizes = {
        info.name: (value.bytes, small.bytes)
        for info, value, small in zip(graph.step.values, graph.problem.values, in_four.values, strict=True)
    }
    shares = graph.forms.division.shares
    assert shares and set(shares.values()) == {1.0}
    assert all(small == (size // 4 if name in shares else size) for name, (size, small) in sizes.items())
    assert {size for name, (size, _) in sizes.items() if name in shares} == {ROWS * 4 * WIDTH * 4}


def test_few_forms_are_made(graph: CapturedGraph) -> None:
    """For the smallest, and for a budget that the whole does not fit."""
    (form,) = smallest_forms([GraphStudy(graph, is_reordered=True)])
    assert form.graph.pieces != WHOLE
    made = [pieces for pieces in graph.forms._made if pieces != WHOLE]
    assert len(made) <= 4 < len(graph.forms.every)
    assert form.minimum_bytes < 0.7 * GraphStudy(graph).minimum_bytes


def test_more_pieces_than_there_are_rows_are_no_form(graph: CapturedGraph) -> None:
    counts = {pieces.count for pieces in graph.forms.every}
    assert Pieces(2) in graph.forms.every and max(counts) <= ROWS * 4 * WIDTH // 2**15

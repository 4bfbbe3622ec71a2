"""Blocks in pieces: those inside of a model too, several of them, each with its forward and its backward."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx

from graphopt.graph.joint import JointGraph, copy_joint
from graphopt.graph.nodes import is_view
from graphopt.passes.joint import CLEANING, in_pieces
from graphopt.passes.joint.chunks.chunk import chunk, division
from graphopt.passes.joint.chunks.find import find_regions
from graphopt.passes.joint.chunks.ops import name_of
from graphopt.passes.joint.contract import RULES
from graphopt.passes.run_passes import run_passes
from graphopt.problem.pieces import Pieces
from tests.support.blocks import Attention, Experts, Gated, Mlp, Stack
from tests.support.joint import joint_graph

WIDTH = 8
#: Units in the last place of a tensor's largest element, from float64's: what docs/numerics.md says.
ULPS = 16
TANGENT = 1.7

STACKS = {
    "mlp": lambda: Stack(Mlp(WIDTH), Mlp(WIDTH)),
    "gated": lambda: Stack(Gated(WIDTH), Gated(WIDTH)),
    "experts": lambda: Stack(Experts(WIDTH), Mlp(WIDTH)),
    "attention": lambda: Stack(Attention(WIDTH), Mlp(WIDTH), Attention(WIDTH)),
    "shared keys": lambda: Stack(Attention(WIDTH, 4, 2), Gated(WIDTH)),
}


@cache
def clean_graph(name: str, batch: int, length: int) -> JointGraph:
    torch.manual_seed(0)
    joint, _ = joint_graph(STACKS[name](), torch.randn(batch, length, WIDTH))
    run_passes(joint, CLEANING)
    return joint


def results(joint: JointGraph, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    returned = fx.Interpreter(joint.module).run(*inputs, enable_io_processing=False)
    return [each for each in returned if each is not None]


def ulps_from(exact: torch.Tensor, found: torch.Tensor) -> float:
    unit = torch.finfo(found.dtype).eps * exact.abs().max()
    return float((found.double() - exact).abs().max() / unit)


def check(name: str, batch: int, length: int, pieces: Pieces, known: bool) -> JointGraph:
    """In pieces the graph keeps all rules, and is as near to float64 as the whole."""
    joint = clean_graph(name, batch, length)
    torch.manual_seed(1)
    placeholders = joint.graph.find_nodes(op="placeholder")
    likes = {node.name: node.meta["val"] for node in placeholders}
    inputs = {key: torch.randn(like.shape) if like.dim() else torch.tensor(TANGENT) for key, like in likes.items()}
    divided = copy_joint(joint)
    run_passes(divided, in_pieces(pieces, tangent_is_known=known), RULES)
    # a tangent that is known is an input more
    names = [node.name for node in divided.graph.find_nodes(op="placeholder")]
    found = results(divided, [inputs.get(key, torch.tensor(TANGENT)) for key in names])
    whole = results(joint, list(inputs.values()))
    exact = results(joint, [each.double() for each in inputs.values()])
    for one, other, best in zip(found, whole, exact, strict=True):
        assert ulps_from(best, one) <= max(ULPS, 8 * ulps_from(best, other))
    return divided


def largest(joint: JointGraph) -> int:
    """Elements of the largest value of the step that is no view."""
    made = [n.meta["val"] for n in joint.graph.nodes if n.op == "call_function" and not is_view(n)]
    return max(value.numel() for value in made if isinstance(value, torch.Tensor))


@pytest.mark.parametrize("name", STACKS)
def test_blocks_in_pieces(name: str) -> None:
    for at_once in (True, False):
        check(name, 4, 12, Pieces(3, at_once), False)
    check(name, 4, 12, Pieces(3, True), True)


@pytest.mark.parametrize(
    ("name", "regions"), [("mlp", 2), ("gated", 1), ("experts", 2), ("attention", 3), ("shared keys", 2)]
)
def test_each_block_is_a_region(name: str, regions: int) -> None:
    """Two gated ones with nothing behind them that mixes rows are one: both of all rows in one pass."""
    joint = copy_joint(clean_graph(name, 4, 36))
    assert len(find_regions(joint)) == regions
    before = largest(joint)
    chunk(joint, Pieces(12))
    assert largest(joint) <= before / 3  # rows of the model's width: all inner values are smaller now


def test_a_smaller_region_is_in_fewer_pieces() -> None:
    joint = copy_joint(clean_graph("attention", 2, 30))  # 3,600 scores, 1,920 elements between two layers
    totals = {name_of(region.nodes[0]): region.total for region in find_regions(joint)}
    assert totals == {"bmm": 30, "addmm": 60}
    chunk(joint, Pieces(4))
    names = [name_of(node) for node in joint.graph.nodes]
    assert names.count("_softmax") == 2 * 4 and names.count("gelu") == 3


def test_values_of_a_size_are_left_alone() -> None:
    """A projection that is as large as what it reads begins no region."""
    model = Stack(torch.nn.Linear(WIDTH, WIDTH), torch.nn.Tanh(), torch.nn.Linear(WIDTH, WIDTH))
    joint, _ = joint_graph(model, torch.randn(4, 12, WIDTH))
    run_passes(joint, CLEANING)
    assert find_regions(joint) == [] and not chunk(joint, Pieces(2)) and not division(joint).pieces


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(list(STACKS)),
    st.sampled_from([(1, 12), (4, 9), (2, 30)]),
    st.builds(Pieces, st.integers(2, 40), st.booleans()),
)
def test_any_shape_in_any_number_of_pieces(name: str, shape: tuple[int, int], pieces: Pieces) -> None:
    check(name, *shape, pieces, False)

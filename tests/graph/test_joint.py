"""The view of a joint graph: which inputs and outputs are what."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from graphopt.graph.joint import JointGraph, is_tangent
from graphopt.graph.roles import Beta, add_input
from tests.support.joint import joint_graph, text_of


class TwoOutputs(nn.Module):
    """A parameter, a frozen one, and two outputs of which one is a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))
        self.frozen = nn.Parameter(torch.randn(3), requires_grad=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = x @ self.weight + self.frozen
        return y.sin(), y.sum()


def two_outputs() -> JointGraph:
    return joint_graph(TwoOutputs(), torch.randn(2, 3))[0]


def names(nodes: object) -> list[str]:
    return [str(node) for node in nodes]  # type: ignore[attr-defined]


def test_inputs_and_outputs_are_told_apart() -> None:
    joint = two_outputs()
    assert names(joint.primals) == ["primals_1", "primals_2", "primals_3"]
    assert names(joint.tangents) == ["tangents_1", "tangents_2"] and all(map(is_tangent, joint.tangents))
    assert joint.added == ()
    assert joint.num_forward_outputs == 2 and names(joint.forward_outputs) == ["sin", "sum_1"]
    assert len(joint.backward_outputs) == len(joint.primals) and joint.backward_outputs[1:] == (None, None)
    assert joint.gradients == {0: joint.backward_outputs[0]}
    assert joint.outputs == (*joint.forward_outputs, *joint.backward_outputs)


def test_what_a_pass_adds_is_no_primal() -> None:
    joint = two_outputs()
    primals = joint.primals
    added = add_input(joint.graph, "beta", Beta(), 1.0)
    assert joint.added == (added,) and joint.primals == primals


def test_gradients_are_set_by_the_place_of_their_primal() -> None:
    joint = two_outputs()
    (gradient,) = joint.gradients.values()
    joint.set_gradients({2: gradient})
    assert joint.gradients == {2: gradient} and names(joint.forward_outputs) == ["sin", "sum_1"]
    assert text_of(joint.graph).endswith(f"return (sin, sum_1, None, None, {gradient})")
    joint.set_gradients({})
    assert joint.gradients == {} and joint.backward_outputs == (None, None, None)


def test_the_backward_is_what_is_tagged_so_or_reads_it() -> None:
    joint = two_outputs()
    late = joint.backward_nodes()
    tagged = {node for node in joint.graph.nodes if node.meta.get("partitioner_tag") == "is_backward"}
    assert late and late == tagged - set(joint.tangents)
    for node in late:
        del node.meta["partitioner_tag"]
    # untagged ones are known by what they read; what reads nothing of the backward may as well run before it
    known = joint.backward_nodes()
    assert known < late or known == late
    assert all(not set(node.all_input_nodes) & {*known, *joint.tangents} for node in late - known)
    assert set(joint.gradients.values()) <= known

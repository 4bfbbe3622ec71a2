"""What only undefined tangents reach goes; what they share with others is what eager makes of it."""

from __future__ import annotations

from functools import partial

import torch
from torch import fx, nn

from graphopt.graph.joint import JointGraph, copy_joint
from graphopt.graph.nodes import written_arguments
from graphopt.graph.roles import UNDEFINED
from graphopt.passes.joint import CLEANING, RETURN_GRADIENTS, summing_in_place
from graphopt.passes.joint.contract import RULES
from graphopt.passes.joint.undefined_tangents import drop_undefined, undefined_nodes, undefined_tangents
from graphopt.passes.run_passes import NamedPass, run_passes
from tests.support.joint import edits, joint_graph, text_of


class LossAndLogits(nn.Module):
    """A third output is of a head that nothing else needs."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Parameter(torch.randn(4, 6))
        self.other = nn.Parameter(torch.randn(4, 2))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits = x @ self.head
        return logits.square().mean(), logits, x @ self.other


class Halves(nn.Module):
    """Two outputs that are parts of one value."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 6))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        left, right = (x @ self.weight).chunk(2, 1)
        return left * 2, right.t() * 3


def specialized(model: nn.Module, defined: frozenset[int]) -> tuple[JointGraph, list[str]]:
    joint, _ = joint_graph(model, torch.randn(3, 4))
    before = text_of(joint.graph)
    assert run_passes(joint, [NamedPass("undefined", partial(undefined_tangents, defined=defined))], RULES)
    return joint, edits(before, text_of(joint.graph))


def test_a_sum_is_its_other_term_and_the_gradient_of_an_unused_head_is_none() -> None:
    joint, changed = specialized(LossAndLogits(), frozenset({0}))
    assert changed == [
        "- t = t.default(primals_2)",
        "- mm_2 = mm.default(t, tangents_3)",
        "- add = add.Tensor(tangents_2, mul_1)",
        "- mm_3 = mm.default(t_1, add)",
        "+ mm_3 = mm.default(t_1, mul_1)",
        "- return [mean, mm, mm_1, mm_3, None, mm_2]",
        "+ return [mean, mm, mm_1, mm_3, None, None]",
    ]
    assert [node.meta.get(UNDEFINED, False) for node in joint.tangents] == [False, True, True]
    assert list(joint.defined_tangents) == [joint.tangents[0]]


def test_a_part_of_a_whole_is_zeros_of_its_own_shape() -> None:
    _, changed = specialized(Halves(), frozenset({1}))
    assert [line for line in changed if "full" in line or "cat" in line] == [
        "+ mul_3_zeros = full.default([3, 3], 0, dtype=torch.float32, device=cpu, pin_memory=False)",
        "- cat = cat.default([mul_3, t_1], 1)",
        "+ cat = cat.default([mul_3_zeros, t_1], 1)",
    ]


class BothOfThem(nn.Module):
    """The third output's gradient is a term of both others', and one of these sums is added to in place."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        h = (x @ self.weight).tanh()
        z = h + h.sin()
        return h, z, (h + z).cos()


def written_with_other_readers(graph: fx.Graph) -> list[str]:
    """Nodes that are written, and that others read besides: a sum in place of what is needed once more."""
    written = [source for node in graph.nodes for source in written_arguments(node)]
    return [node.name for node in written if len(node.users) > 1]


def test_what_a_sum_becomes_is_not_written_where_others_read_it() -> None:
    joint, _ = joint_graph(BothOfThem(), torch.randn(3, 4))
    run_passes(joint, summing_in_place(RETURN_GRADIENTS), RULES)
    assert [node for node in joint.graph.nodes if node.target is torch.ops.aten.add_.Tensor]
    late = joint.backward_nodes()
    drop_undefined(joint.graph, joint.tangents[:2], late)
    joint.graph.lint()
    assert written_with_other_readers(joint.graph) == []
    copies = [node for node in joint.graph.nodes if node.target is torch.ops.aten.clone.default and node in late]
    assert len(copies) <= 1 and not [node for node in joint.graph.nodes if "zeros" in node.name]


def test_sums_in_place_of_what_is_undefined_go() -> None:
    joint, _ = joint_graph(BothOfThem(), torch.randn(3, 4))
    run_passes(joint, summing_in_place(RETURN_GRADIENTS), RULES)
    late = joint.backward_nodes()
    drop_undefined(joint.graph, joint.tangents, late)
    assert not [node for node in joint.graph.nodes if node in late] and not any(joint.gradients.values())


def test_where_all_tangents_are_defined_nothing_changes() -> None:
    joint, _ = joint_graph(LossAndLogits(), torch.randn(3, 4))
    before = text_of(joint.graph)
    assert not undefined_tangents(joint, frozenset({0, 1, 2})) and text_of(joint.graph) == before


def test_the_forward_stays_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.BatchNorm1d(4))

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            h = self.model(x)
            return h.mean(), nn.functional.dropout(h, 0.1).sin()

    joint, _ = joint_graph(Both(), torch.randn(3, 4))
    run_passes(joint, CLEANING)
    late = joint.backward_nodes()
    forward = [node.name for node in joint.graph.nodes if node not in late]
    fewer = copy_joint(joint)
    assert run_passes(fewer, [NamedPass("undefined", partial(undefined_tangents, defined={0}))], RULES)
    run_passes(fewer, RETURN_GRADIENTS, RULES)
    late = fewer.backward_nodes()
    assert [node.name for node in fewer.graph.nodes if node not in late] == forward
    assert len(late) < len(joint.backward_nodes())


def test_undefined_nodes_are_those_that_no_other_tangent_reaches() -> None:
    joint, _ = joint_graph(LossAndLogits(), torch.randn(3, 4))
    found = undefined_nodes(joint.graph, joint.tangents[1:])
    assert sorted(node.name for node in found) == ["mm_2", "tangents_2", "tangents_3"]

"""The add_to_gradients pass: gradients are added in place where they are made, and returned no more."""

from __future__ import annotations

import torch
from torch import nn

from graphopt.graph.roles import DESCRIPTOR, Accumulator
from graphopt.passes.joint import add_gradients
from graphopt.passes.joint.add_to_gradients import add_to_gradients
from graphopt.passes.joint.contract import RULES
from graphopt.passes.run_passes import run_passes
from tests.support.joint import joint_graph, text_of
from tests.support.small_models import Bias


def test_a_gradient_is_added_where_it_is_made() -> None:
    joint, _ = joint_graph(Bias(), torch.randn(3))
    assert add_to_gradients(joint, [0])
    assert text_of(joint.graph) == (
        "primals_1: input\n"
        "primals_2: input\n"
        "primals_3: input\n"
        "tangents_1: input\n"
        "gradient_primals_1: input\n"
        "add = add.Tensor(primals_2, primals_1)\n"
        "add_1 = add.Tensor(add, primals_3)\n"
        "sum_1 = sum.default(add_1)\n"
        "expand = expand.default(tangents_1, [3])\n"
        "add__tensor = add_.Tensor(gradient_primals_1, expand)\n"
        "return (sum_1, None, None, expand)"
    )
    (added,) = joint.added
    assert added.meta[DESCRIPTOR] == Accumulator(0)


def test_what_is_not_wanted_stays() -> None:
    joint, _ = joint_graph(Bias(), torch.randn(3))
    before = text_of(joint.graph)
    assert not add_to_gradients(joint, [1])
    assert text_of(joint.graph) == before


def test_the_graph_keeps_its_contract() -> None:
    joint, _ = joint_graph(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3)), torch.randn(4, 3))
    wanted = list(joint.gradients)
    assert run_passes(joint, add_gradients(wanted), RULES)
    assert not joint.gradients and len(joint.added) == len(wanted)

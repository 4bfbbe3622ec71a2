"""The own_gradients pass: autograd's copies stand in the graph, and only those."""

from __future__ import annotations

import torch
from torch import nn

from graphopt.passes.joint.own_gradients import own_gradients
from tests.support.joint import joint_graph, text_of
from tests.support.small_models import Bias


def test_own_gradients_copies_what_autograd_would_copy() -> None:
    joint, _ = joint_graph(Bias(), torch.randn(3))
    body = (
        "primals_1: input\n"
        "primals_2: input\n"
        "primals_3: input\n"
        "tangents_1: input\n"
        "add = add.Tensor(primals_2, primals_1)\n"
        "add_1 = add.Tensor(add, primals_3)\n"
        "sum_1 = sum.default(add_1)\n"
        "expand = expand.default(tangents_1, [3])\n"
    )
    assert text_of(joint.graph) == f"{body}return [sum_1, expand, None, expand]"
    assert own_gradients(joint)
    assert text_of(joint.graph) == (
        f"{body}"
        "expand_copy_1 = copy_laid_out_like.default(expand, primals_3)\n"
        "expand_copy = copy_laid_out_like.default(expand, primals_1)\n"
        "return (sum_1, expand_copy, None, expand_copy_1)"
    )
    assert not own_gradients(joint)


def test_own_gradients_leaves_what_autograd_keeps() -> None:
    joint, _ = joint_graph(nn.Sequential(nn.Linear(3, 3), nn.Conv1d(3, 3, 1)), torch.randn(3, 3))
    assert not own_gradients(joint)


def test_copies_take_the_parameter_layout() -> None:
    parameter = torch.randn(4, 6).t()
    copy = torch.ops.graphopt.copy_laid_out_like(torch.ones(6, 1).expand(6, 4), parameter)
    assert copy.stride() == parameter.stride()
    assert copy.is_set_to(copy) and torch.equal(copy, torch.ones(6, 4))

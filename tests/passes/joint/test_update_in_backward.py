"""The update_in_backward pass: the graph's text before and after."""

from __future__ import annotations

import torch

from graphopt.passes.joint.update_in_backward import update_in_backward
from graphopt.passes.window.update import GroupUpdate
from tests.support.joint import edits, joint_graph, text_of
from tests.support.small_models import TwoLayers

SGD = GroupUpdate(0, "sgd", ("first.weight", "second.weight"), (("nesterov", False), ("maximize", False)), ())
NUMBERS = (
    "lr=lr_of_group_0, momentum=momentum_of_group_0, dampening=dampening_of_group_0, "
    "weight_decay=weight_decay_of_group_0, nesterov=False, maximize=False"
)
EDITS = [
    "+ first_primals_1: input",
    "+ lr_of_group_0: input",
    "+ momentum_of_group_0: input",
    "+ dampening_of_group_0: input",
    "+ weight_decay_of_group_0: input",
    "+ first_primals_3: input",
    "+ sgd__default_1 = sgd_.default(params=[primals_3], gradients=[t_5], momentum_buffers=[], copies=[], "
    f"{NUMBERS}, first=first_primals_3)",
    "- return [sum_1, t_8, None, t_5]",
    "+ sgd__default = sgd_.default(params=[primals_1], gradients=[t_8], momentum_buffers=[], copies=[], "
    f"{NUMBERS}, first=first_primals_1)",
    "+ return (sum_1, None, None, None)",
]


def test_an_update_stands_behind_the_last_read_of_its_parameter() -> None:
    joint, _ = joint_graph(TwoLayers(), torch.randn(2, 3))
    before = text_of(joint.graph)
    assert update_in_backward(joint, {0: SGD, 2: SGD})
    assert edits(before, text_of(joint.graph)) == EDITS
    lines = text_of(joint.graph).splitlines()
    assert [line.partition("(")[0] for line in lines[lines.index("sum_1 = sum.default(mm_1)") :]] == [
        "sum_1 = sum.default",
        "expand = expand.default",
        "t_2 = t.default",
        "mm_2 = mm.default",
        "t_3 = t.default",
        "t_4 = t.default",
        "mm_3 = mm.default",
        "t_5 = t.default",
        "sgd__default_1 = sgd_.default",
        "t_6 = t.default",
        "mm_4 = mm.default",
        "t_7 = t.default",
        "t_8 = t.default",
        "sgd__default = sgd_.default",
        "return ",
    ]
    second = next(line for line in lines if line.startswith("sgd__default_1"))
    assert "params=[primals_3], gradients=[t_5], momentum_buffers=[], copies=[], lr=lr_of_group_0" in second
    assert lines[-1] == "return (sum_1, None, None, None)"


def test_gradients_that_update_nothing_are_given_up_and_then_nothing_changes() -> None:
    joint, _ = joint_graph(TwoLayers(), torch.randn(2, 3))
    assert update_in_backward(joint, {})
    text = text_of(joint.graph)
    assert text.endswith("sum_1 = sum.default(mm_1)\nreturn (sum_1, None, None, None)")
    assert not update_in_backward(joint, {0: SGD, 2: SGD}) and text_of(joint.graph) == text

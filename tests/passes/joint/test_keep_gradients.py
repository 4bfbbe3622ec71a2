"""The keep_gradients pass: what nobody wants is not computed."""

from __future__ import annotations

import torch

from graphopt.passes.joint.keep_gradients import keep_gradients
from tests.support.joint import edits, joint_graph, text_of
from tests.support.small_models import Linear


def test_what_computes_only_gradients_that_nobody_wants_goes() -> None:
    joint, _ = joint_graph(Linear(), torch.randn(2, 3))
    before = text_of(joint.graph)
    bias = 2
    assert keep_gradients(joint, [bias])
    assert edits(before, text_of(joint.graph)) == [
        "- t_1 = t.default(expand)",
        "- mm_1 = mm.default(t_1, primals_2)",
        "- t_2 = t.default(mm_1)",
        "- t_3 = t.default(t_2)",
        "- return [sum_1, t_3, None, view]",
        "+ return (sum_1, None, None, view)",
    ]
    assert not keep_gradients(joint, [bias])


def test_gradients_that_are_all_wanted_stay() -> None:
    joint, _ = joint_graph(Linear(), torch.randn(2, 3))
    before = text_of(joint.graph)
    assert not keep_gradients(joint, [0, 1, 2]) and text_of(joint.graph) == before

"""The free_shapes pass: sizes in place of tensors."""

from __future__ import annotations

import torch
from torch import nn

from graphopt.passes.joint.free_shapes import free_shapes
from tests.support.joint import edits, joint_graph, text_of
from tests.support.small_models import Shapes


def test_free_shapes_gives_sizes_for_tensors() -> None:
    joint, _ = joint_graph(Shapes(), torch.randn(2, 3, requires_grad=True))
    before = text_of(joint.graph)
    assert free_shapes(joint)
    how = "dtype=torch.float32, device=cpu, pin_memory=False"
    assert edits(before, text_of(joint.graph)) == [
        "- ones_like = ones_like.default(mul, pin_memory=False)",
        f"+ ones_like = ones.default([2, 3], {how})",
        "- full_like = full_like.default(primals_1, 2.0, pin_memory=False)",
        f"+ full_like = full.default([2, 3], 2.0, {how})",
    ]
    assert not free_shapes(joint)


class Transposed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * torch.ones_like(x.t()).t()).sum()


def test_a_layout_that_is_the_tensors_own_stays() -> None:
    joint, _ = joint_graph(Transposed(), torch.randn(2, 3, requires_grad=True))
    before = text_of(joint.graph)
    assert "ones_like.default" in before
    assert not free_shapes(joint) and text_of(joint.graph) == before

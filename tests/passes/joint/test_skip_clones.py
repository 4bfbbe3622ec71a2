"""Clones that serve nothing go; those that change a layout, free a storage or leave the graph stay."""

from __future__ import annotations

import torch
from torch import nn

from graphopt.passes.joint.skip_clones import skip_clones
from tests.support.joint import joint_graph, text_of


class Clones(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(x @ self.weight, 0.0, training=True).clone().sin().sum()


class Needed(nn.Module):
    """Of an input, of another layout, of a part of a storage, and a returned one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = (x.clone() @ self.weight).sin()
        return y[:1].clone() * y.t().contiguous().cos(), (y * 2).clone()


def test_a_clone_of_a_value_is_the_value() -> None:
    joint, _ = joint_graph(Clones(), torch.randn(3, 4))
    assert "clone" in text_of(joint.graph)
    assert skip_clones(joint)
    assert text_of(joint.graph) == (
        "primals_1: input\n"
        "primals_2: input\n"
        "tangents_1: input\n"
        "mm = mm.default(primals_2, primals_1)\n"
        "sin = sin.default(mm)\n"
        "sum_1 = sum.default(sin)\n"
        "expand = expand.default(tangents_1, [3, 4])\n"
        "cos = cos.default(mm)\n"
        "mul = mul.Tensor(expand, cos)\n"
        "t = t.default(primals_2)\n"
        "mm_1 = mm.default(t, mul)\n"
        "return [sum_1, mm_1, None]"
    )
    assert not skip_clones(joint)


def test_clones_that_serve_something_stay() -> None:
    joint, _ = joint_graph(Needed(), torch.randn(4, 4))
    before = text_of(joint.graph)
    assert before.count("= clone") == 4
    assert not skip_clones(joint)
    assert text_of(joint.graph) == before


def test_views_of_a_skipped_clone_are_views_of_what_it_copied() -> None:
    class Views(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x.sin().clone().view(2, 6).split(3, dim=1)[1] * 2).sum()

    joint, _ = joint_graph(Views(), torch.randn(3, 4, requires_grad=True))
    assert skip_clones(joint)
    storage = {node.name: node.meta["val"] for node in joint.graph.nodes if node.name in ("sin", "view", "getitem_1")}
    assert len({value.untyped_storage()._cdata for value in storage.values()}) == 1
    assert storage["getitem_1"].shape == (2, 3)

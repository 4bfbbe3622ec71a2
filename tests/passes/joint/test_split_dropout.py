"""The split_dropout pass: a mask drawn apart, with eager's draws and eager's bits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from graphopt.passes.joint.split_dropout import split_dropout
from tests.support.joint import joint_graph, leaves, text_of
from tests.support.small_models import Dropout


def test_split_dropout_draws_the_mask_apart() -> None:
    joint, _ = joint_graph(Dropout(), torch.randn(3, 4))
    assert text_of(joint.graph) == (
        "primals_1: input\n"
        "primals_2: input\n"
        "tangents_1: input\n"
        "mm = mm.default(primals_2, primals_1)\n"
        "native_dropout = native_dropout.default(mm, 0.5, True)\n"
        "getitem = getitem(native_dropout, 0)\n"
        "getitem_1 = getitem(native_dropout, 1)\n"
        "sum_1 = sum.default(getitem)\n"
        "expand = expand.default(tangents_1, [3, 4])\n"
        "native_dropout_backward = native_dropout_backward.default(expand, getitem_1, 2.0)\n"
        "t = t.default(primals_2)\n"
        "mm_1 = mm.default(t, native_dropout_backward)\n"
        "return [sum_1, mm_1, None]"
    )
    assert split_dropout(joint)
    assert text_of(joint.graph) == (
        "primals_1: input\n"
        "primals_2: input\n"
        "tangents_1: input\n"
        "mm = mm.default(primals_2, primals_1)\n"
        "dropout_mask = dropout_mask.default([3, 4], [4, 1], 0.5, device=cpu)\n"
        "dropout = apply_dropout_mask.default(mm, dropout_mask, 0.5)\n"
        "sum_1 = sum.default(dropout)\n"
        "expand = expand.default(tangents_1, [3, 4])\n"
        "native_dropout_backward = native_dropout_backward.default(expand, dropout_mask, 2.0)\n"
        "t = t.default(primals_2)\n"
        "mm_1 = mm.default(t, native_dropout_backward)\n"
        "return [sum_1, mm_1, None]"
    )
    assert not split_dropout(joint)


@pytest.mark.parametrize("p", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "strided", "expanded"])
def test_split_dropout_equals_eager(p: float, dtype: torch.dtype, layout: str) -> None:
    class Drops(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = {"transposed": x.transpose(0, 1), "strided": x[:, :, ::2], "expanded": x[:, :1].expand(7, 5, 33)}.get(
                layout, x
            )
            return nn.functional.dropout(x * 1 if layout == "transposed" else x, p)

    x = torch.randn(7, 5, 33, dtype=dtype, requires_grad=True)
    joint, _ = joint_graph(Drops(), x)
    given = ([x.detach()], [torch.randn_like(Drops()(x)).contiguous()])
    state = torch.get_rng_state()
    output = Drops()(x)
    expected = [output.detach(), *torch.autograd.grad(output, x, given[1][0])]
    if p == 1.0:  # here eager draws nothing, the captured graph does
        expected = leaves(joint.module(*given))
    after = torch.get_rng_state()
    assert split_dropout(joint)
    torch.set_rng_state(state)
    found = leaves(joint.module(*given))
    assert torch.equal(torch.get_rng_state(), after)
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, other) and one.stride() == other.stride()


def test_split_dropout_leaves_a_graph_without_dropout() -> None:
    joint, _ = joint_graph(nn.Linear(3, 3), torch.randn(2, 3))
    before = text_of(joint.graph)
    assert not split_dropout(joint)
    assert text_of(joint.graph) == before

"""The skip_copies pass: what is scattered is scattered as it is."""

from __future__ import annotations

import torch

from graphopt.passes.joint.skip_copies import skip_copies
from tests.support.joint import edits, joint_graph, leaves, text_of
from tests.support.small_models import Writes


def test_skip_copies_scatters_the_source() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    joint, _ = joint_graph(Writes(), x)
    given = ([x.detach()], [torch.ones(())])
    expected = leaves(joint.module(*given))
    before = text_of(joint.graph)
    assert skip_copies(joint)
    assert edits(before, text_of(joint.graph)) == [
        "- select_1 = select.int(mul, 1, 0)",
        "- copy = copy.default(select_1, select)",
        "- select_scatter = select_scatter.default(mul, copy, 1, 0)",
        "+ select_scatter = select_scatter.default(mul, select, 1, 0)",
        "- copy_2 = copy.default(slice_6, zeros_like)",
        "- slice_scatter_1 = slice_scatter.default(copy_1, copy_2, 1, 1, 9223372036854775807)",
        "+ slice_scatter_1 = slice_scatter.default(copy_1, zeros_like, 1, 1, 9223372036854775807)",
        "- copy_4 = copy.default(select_5, zeros_like_1)",
        "- select_scatter_1 = select_scatter.default(copy_3, copy_4, 1, 0)",
        "+ select_scatter_1 = select_scatter.default(copy_3, zeros_like_1, 1, 0)",
    ]
    assert all(torch.equal(a, b) for a, b in zip(expected, leaves(joint.module(*given)), strict=True))
    assert not skip_copies(joint)

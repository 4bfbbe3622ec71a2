"""Nodes that are written while a region is divided."""

from __future__ import annotations

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from graphopt.passes.joint.chunks.ops import name_of, shape_of
from graphopt.passes.joint.chunks.rows import Rows
from graphopt.passes.joint.chunks.writing import Writer


def test_rows_that_are_no_one_stretch_are_copied() -> None:
    """What is transposed cannot be viewed as rows: fake tensors say so by a ValueError, real ones by a RuntimeError."""
    graph = fx.Graph()
    heads = graph.placeholder("heads")
    with FakeTensorMode():
        heads.meta["val"] = torch.empty(4, 8, 6, 2).transpose(1, 2)
    graph.output(heads)
    flat = Writer(graph).flattened(heads, Rows(0, 2), heads)
    assert shape_of(flat) == (24, 8, 2) and name_of(flat.args[0]) == "clone"

"""Regions that are compiled once (`torch.compiler.nested_compile_region`), taken apart: their ops are planned."""

from __future__ import annotations

import torch
from torch import fx


def with_regions_inlined(module: fx.GraphModule) -> None:
    """Let one of Dynamo's graphs, and those inside of it, call the graphs of their regions as modules."""
    for part in module.modules():
        if not isinstance(part, fx.GraphModule):
            continue
        calls = part.graph.find_nodes(op="call_function", target=torch.ops.higher_order.invoke_subgraph)
        for node in calls:
            region, _name, *operands = node.args
            assert isinstance(region, fx.Node) and isinstance(region.target, str)
            node.op, node.target, node.args = "call_module", region.target, tuple(operands)
        if calls:
            part.recompile()

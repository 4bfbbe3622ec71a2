"""The specialize pass: numbers in place of symbols, guarded."""

from __future__ import annotations

import torch
from torch import nn

from graphopt.graph.joint import JointGraph
from graphopt.passes.joint.specialize import specialize
from tests.support.joint import text_of


def test_specialize_makes_symbols_numbers() -> None:
    class Sized(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x.view(x.shape[0] * 2, -1) * x.shape[0]).sum()

    torch._dynamo.reset()
    seen: list[tuple[str, str]] = []

    def backend(module: torch.fx.GraphModule, _inputs: object) -> torch.fx.GraphModule:
        # Dynamo's own graph has the symbols that a joint graph has, under another key
        for node in module.graph.nodes:
            node.meta["val"] = node.meta.get("example_value")
        before = text_of(module.graph)
        joint = JointGraph(module, 1)
        for symbol in (node.meta["val"] for node in module.graph.nodes if isinstance(node.meta["val"], torch.SymInt)):
            int(symbol)  # a guard ties it to its value
        assert specialize(joint)
        seen.append((before, text_of(module.graph)))
        assert not specialize(joint)
        return module

    model = torch.compile(Sized(), backend=backend, dynamic=True)
    model(torch.randn(4, 6, requires_grad=True))
    before, after = seen[0]
    assert "view = view(l_x_, mul, -1)" in before
    assert after.endswith("view = view(l_x_, 8, -1)\nmul_1 = mul(view, 4)\nsum_1 = sum(mul_1)\nreturn (sum_1,)")
    # the numbers are guarded: another size is another graph
    x = torch.randn(5, 6, requires_grad=True)
    assert torch.equal(model(x), Sized()(x)) and len(seen) == 2

"""Which values of a joint graph are planned as never stored, and which are."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._inductor import compile_fx
from torch._inductor.choices import InductorChoices
from torch._inductor.codegen.cpp import CppScheduling
from torch._inductor.fx_passes import post_grad
from torch._inductor.graph import GraphLowering
from torch._inductor.ir import StorageBox

import graphopt
from graphopt.graph.step_graph import StepGraph
from graphopt.lower import halves
from graphopt.lower.halves import LoweredHalves
from graphopt.lower.virtual_values import STORED


@pytest.fixture(autouse=True)
def nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans alone are looked at: what would be compiled runs as it is written."""
    monkeypatch.setattr(halves, "lower_halves", lambda _emitted: LoweredHalves({}, None, 0.0))


def planned(model: nn.Module, x: torch.Tensor) -> StepGraph:
    graphopt.optimize(model, "1GiB", compiler="inductor", cost_model="roofline", example_inputs=x)
    (planned,) = model.graphopt.planned_graphs  # type: ignore[union-attr]
    return planned.captured.step  # type: ignore[no-any-return]


def kinds(step: StepGraph) -> list[str]:
    return [str(op.node.target).removeprefix("aten.") for op in step.ops if op.node is not None]


def test_a_chain_between_two_products_is_one_value() -> None:
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.a(x)
            return self.b((h * 2 + 1).relu() * h)  # type: ignore[no-any-return]

    step = planned(Chain(), torch.randn(4, 8))
    # the chain's last op is what the second product reads; in the backward it ends in the first weight's gradient
    assert kinds(step) == [
        "mm.default",
        "mul.Tensor",
        "mm.default",
        "mm.default",
        "mm.default",
        "add.Tensor",
        "mm.default",
    ]
    assert {str(node.target) for node in step.virtual} >= {"aten.add.Tensor", "aten.relu.default", "aten.le.Scalar"}


def test_what_runs_is_what_is_planned() -> None:
    """With nothing lowered the emitted halves run op by op: virtual ones are made where they are read."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 8), nn.Softmax(-1))
    x, eager = torch.randn(16, 8), [p.detach().clone().requires_grad_() for p in model.parameters()]
    loss = torch.func.functional_call(model, dict(zip(dict(model.named_parameters()), eager, strict=True)), x)
    loss.square().sum().backward()
    planned(model, x)
    model(x).square().sum().backward()
    for ours, theirs in zip(model.parameters(), eager, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)


def test_a_sum_of_many_products_is_stored_on_the_way() -> None:
    class Unrolled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.Linear(16, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(12):
                x = torch.tanh(self.cell(x))
            return x.sum()

    step = planned(Unrolled(), torch.randn(16, 16))
    stored = {op.node: op for op in step.ops if op.node is not None and op.node.meta.get(STORED)}
    # twelve gradients of one weight: never more than two wait for the next
    sums = [op for op in stored.values() if "add" in op.name]
    assert len(sums) >= 4
    assert max(len(op.inputs) for op in sums) <= 3

    # what is stored for a product is made in its place as well, not in front of the product
    assert sum(node.target is torch.ops.aten.tanh.default for node in stored) == 11  # the last one's is summed
    assert not any(node.meta.get(STORED) for node in step.virtual)


def test_the_private_parts_of_inductor_that_are_changed_are_there() -> None:
    """Each is changed by graphopt.lower; where one is gone, what it kept from a plan has to be kept otherwise."""
    assert callable(compile_fx._recursive_joint_graph_passes), "before_planning: Inductor's passes over a joint graph"
    assert callable(post_grad.should_prefer_unfused_addmm), "inductor: whether `x + a @ b` becomes one library call"
    assert "should_prefer_unfused_addmm" in post_grad.is_valid_addmm_fusion.__code__.co_names
    assert callable(CppScheduling.codegen_node), "kernel_groups: where C++ loops are written into one function"
    assert callable(CppScheduling._set_flush_status), "kernel_groups: ends such a function"
    assert callable(StorageBox.has_exceeded_max_reads), "inductor: what is stored though it could be computed again"
    assert callable(GraphLowering.decide_layout_opt), "channels_last: whether convolutions are turned"
    assert callable(InductorChoices.can_fuse_vertical), "fusion_guard"
    assert callable(InductorChoices.can_fuse_horizontal), "fusion_guard"

"""What libraries keep for good on a CUDA device; the real thing is in tests/gpu."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import nn

import graphopt
from graphopt.cost_models.signature import Signature
from graphopt.graph.step_graph import StepGraph
from graphopt.plan import workspaces
from graphopt.run.calls import plans


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("aten.mm.default", True),
        ("aten.addmm.default", True),
        ("graphopt.accumulate_mm_.default", True),
        ("somebodys.op.default", True),
        ("aten.convolution.default", False),
        ("aten.relu_.default", False),
        ("graphopt.accumulate_.default", False),
    ],
)
def test_products_are_told_by_their_names(name: str, expected: bool) -> None:
    assert workspaces._multiplies(name) is expected


def test_the_products_run_in_the_middle_of_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward, in real numbers, while Dynamo and AOTAutograd are at work."""
    runs = []

    def take(given: Iterable[StepGraph], device: torch.device, *, in_autograd: bool) -> None:
        graphs = list(given)
        assert graphs and in_autograd
        workspaces.multiply(workspaces.products_of(graphs), device, in_autograd=True)
        runs.append(device)

    seen: list[str] = []
    run = workspaces.runnable

    def ran(call: Signature) -> object:
        found = run(call)
        assert found is not None and type(found()) is torch.Tensor
        assert torch._C._is_multithreading_enabled()  # tracing turns it off: all would run in this thread
        seen.append(str(call.target))
        return found

    monkeypatch.setattr(workspaces, "runnable", ran)
    monkeypatch.setattr(plans, "take_workspaces", take)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    graphopt.optimize(model, "1GiB", example_inputs=torch.randn(4, 8))
    assert runs == [torch.device("cpu")]
    assert set(seen) == {"aten.addmm.default", "aten.mm.default"}
    assert seen[: len(seen) // 2] == seen[len(seen) // 2 :]  # in this thread, and in autograd's

"""Convolutions that are turned to channels-last order before they are planned."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import graphopt
from graphopt.device.measure import peak_bytes
from graphopt.graph.step_graph import StepGraph
from graphopt.lower import halves
from graphopt.lower.halves import LoweredHalves

aten = torch.ops.aten
X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would be compiled runs as it is written, with eager's kernels."""
    monkeypatch.setattr(halves, "lower_halves", lambda _emitted: LoweredHalves({}, None, 0.0))


class Net(nn.Module):
    """Whatever a convolution's results may meet: a norm, a draw, a pool, a view across channels, the caller."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.down, self.up = nn.Conv2d(8, 8, 3, 2, 1, groups=8), nn.ConvTranspose2d(8, 8, 2, 2)
        self.one, self.last = nn.Conv2d(16, 4, 1), nn.Linear(4 * 8 * 8, 5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        skip = nn.functional.dropout(torch.relu(self.norm(self.first(x))), 0.25)
        h = self.one(torch.cat([skip, self.up(self.down(skip))], 1))
        return self.last(nn.functional.max_pool2d(h, 2).flatten(1)), h, h.permute(0, 2, 3, 1)[:, ::2]


def planned(model: nn.Module, x: torch.Tensor) -> StepGraph:
    graphopt.optimize(model, "1GiB", compiler="inductor", cost_model="roofline", example_inputs=x)
    (planned,) = model.graphopt.planned_graphs  # type: ignore[union-attr]
    return planned.captured.step  # type: ignore[no-any-return]


def step(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Outputs and gradients of a step, from the same draws."""
    torch.manual_seed(1)
    outputs = model(x)
    sum(each.square().mean() for each in outputs).backward()
    return [*outputs, *(parameter.grad for parameter in model.parameters()), *model.buffers()]


def wide_strides(tensor: torch.Tensor) -> list[int]:
    """Those that say where an element is."""
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]


def convolutions(graph: StepGraph) -> list[torch.fx.Node]:
    nodes = [op.node for op in graph.ops if op.node is not None]
    return [node for node in nodes if node.target in (aten.convolution.default, aten.convolution_backward.default)]


@pytest.mark.usefixtures("nothing_is_compiled")
@pytest.mark.parametrize("channels", [3, 1])
def test_all_that_convolutions_read_is_turned_and_results_are_eagers(channels: int) -> None:
    x = X[:, :channels].contiguous()
    model, eager = Net(channels), Net(channels)
    nodes = convolutions(planned(model, x))
    assert len(nodes) == 8
    for node in nodes:
        tensors = [each.meta["val"] for each in node.all_input_nodes if each.meta["val"].dim() == 4]
        assert all(each.is_contiguous(memory_format=torch.channels_last) for each in tensors)
        assert torch._prims_common.suggest_memory_format(tensors[0]) is torch.channels_last or channels == 1
    for ours, theirs in zip(step(model, x), step(eager, x), strict=True):
        assert wide_strides(ours) == wide_strides(theirs)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


class ByStrides(nn.Module):
    """It reads the result of a convolution by numbers that hold for one order."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.conv(x).as_strided((4, 14), (784, 1), 5).exp(),)


class Others(nn.Module):
    """Convolutions of one and of three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.line, self.volume = nn.Conv1d(3, 4, 3), nn.Conv3d(1, 2, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.volume(self.line(x.flatten(2)).unflatten(-1, (2, 127))[:, None].repeat(1, 1, 1, 2, 1)),)


def copies(graph: StepGraph) -> list[torch.fx.Node]:
    """Those into channels-last order."""
    nodes = [op.node for op in graph.ops if op.node is not None]
    return [node for node in nodes if node.kwargs.get("memory_format") is torch.channels_last]


@pytest.mark.usefixtures("nothing_is_compiled")
@pytest.mark.parametrize("kind", [ByStrides, Others])
def test_what_cannot_be_turned_stays(kind: type[nn.Module]) -> None:
    model, eager = kind(), kind()
    graph = planned(model, X)
    assert convolutions(graph) and not copies(graph)
    for ours, theirs in zip(step(model, X), step(eager, X), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("nothing_is_compiled")
def test_inductors_own_setting_is_kept_to() -> None:
    assert copies(planned(Net(), X))
    with torch._inductor.config.patch(layout_optimization=False):
        assert not copies(planned(Net(), X))


class Mean(nn.Module):
    """A loss."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.square().mean()


def test_compiled_they_take_what_was_planned() -> None:
    """Inductor copies nothing that is not in the plan, and keeps its order."""
    torch.manual_seed(0)
    layers = [[nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()] for _ in range(3)]
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *(each for three in layers for each in three), Mean())
    eager, x = copy.deepcopy(model), torch.randn(2, 3, 64, 64)

    def run(module: nn.Module) -> None:
        for parameter in module.parameters():
            parameter.grad = None
        module(x).backward()

    run(eager)
    budget_bytes = int(0.75 * peak_bytes(lambda: run(eager), [*eager.parameters(), *eager.buffers(), x], "cpu"))
    graphopt.optimize(model, budget_bytes, compiler="inductor", example_inputs=x)
    run(model)
    run(model)
    for ours, theirs in zip(model.parameters(), eager.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None and ours.grad.stride() == theirs.grad.stride()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-6)
    measured = peak_bytes(lambda: run(model), [*model.parameters(), *model.buffers(), x], "cpu")
    compiled = model.graphopt.report.compiled
    assert compiled is not None and measured <= budget_bytes
    # less, where a kernel writes its result over what it reads
    assert compiled.measured_bytes <= 1.02 * compiled.planned_bytes and compiled.rounds == 1

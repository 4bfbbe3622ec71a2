"""Rounding is told from faults: gradients that are next to nothing, half precision, complex numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

import graphopt
from graphopt.api import verify
from graphopt.capture import aot
from graphopt.emit.emit import RECOMPUTED, Emitted
from graphopt.graph.step_graph import StepGraph
from graphopt.problem.schedule import Schedule
from graphopt.verify import rounding
from graphopt.verify.step_result import Difference, RecordedStep, differences, distance, run_step


def scaled_gradient(w: torch.Tensor, factor: float) -> torch.Tensor:
    """`w`, whose gradient is `factor` times what it should be, under capture alone."""
    return w * factor + (w * (1 - factor)).detach() if torch.compiler.is_compiling() else w


class Nothing(nn.Module):
    """`lost.bias` has a gradient of nothing but rounding, and what is traced rounds otherwise than eager."""

    def __init__(self, factor: float = 1.0, wrong: str = "") -> None:
        super().__init__()
        self.factor, self.wrong = factor, wrong
        self.stem, self.lost = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.mix, self.norm, self.head = nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16), nn.Conv2d(16, 5, 1)

    def parameter(self, name: str) -> torch.Tensor:
        found = self.get_parameter(name)
        return scaled_gradient(found, self.factor) if name == self.wrong else found

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        p = self.parameter
        h = F.conv2d(x, p("stem.weight"), p("stem.bias"), padding=1)
        h = F.batch_norm(h, None, None, p("lost.weight"), p("lost.bias"), training=True)
        h = F.conv2d(h, p("mix.weight"), p("mix.bias"))
        h = F.batch_norm(h, None, None, p("norm.weight"), p("norm.bias"), training=True).relu()
        h = F.conv2d(h, p("head.weight"), p("head.bias"))
        return (h * 1.1 / 1.1 if torch.compiler.is_compiling() else h).square().mean()


IMAGES = (torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0)),)


def verified(model: nn.Module, inputs: Any) -> verify.Verification:
    return verify.verify_model(model, inputs, mem_budget="1GiB", time_rounds=0, cost_model="roofline")


def test_a_gradient_that_is_all_rounding_is_no_false_alarm() -> None:
    torch.manual_seed(0)
    model = Nothing()
    eager = run_step(model, model._call_impl, IMAGES, {})
    session = graphopt.optimize(model, "1GiB", example_inputs=IMAGES, cost_model="roofline").graphopt.session
    gaps = differences(eager, run_step(model, session, IMAGES, {}))
    assert any(not gap.tolerable for gap in gaps), "the model does not show what it is here for"
    found = verified(model.graphopt.restore(), IMAGES)
    assert found.equal and not found.bitwise
    assert "no more than rounding does, judged by float64" in found.lines[2]


@pytest.mark.parametrize(
    ("factor", "wrong"), [(-1.0, "stem.weight"), (0.0, "lost.weight"), (1.001, "norm.bias"), (1.001, "head.weight")]
)
def test_a_wrong_gradient_beside_one_of_nothing_is_found(factor: float, wrong: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(graphopt.VerificationError, match="capture changes the model's results") as caught:
        verified(Nothing(factor, wrong), IMAGES)
    assert caught.value.tensor == f"gradient of {wrong}"


class Vanishing(nn.Module):
    """The first layer's gradients are some 1e-10 of the last one's, and well defined."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        w = scaled_gradient(self.first.weight, self.factor)
        x = self.last(1e-10 * F.linear(x, w, self.first.bias).tanh() + x)
        return F.interpolate(x[None], scale_factor=2, mode="linear").square().mean()


@pytest.mark.parametrize("factor", [-1.0, 1.001])
def test_a_small_gradient_is_not_taken_for_nothing(factor: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 16)
    assert verified(Vanishing(1.0), (x,)).equal
    with pytest.raises(graphopt.VerificationError) as caught:
        verified(Vanishing(factor), (x,))
    assert caught.value.tensor == "gradient of first.weight"


class Half(nn.Module):
    """The same in bfloat16, and dropout, whose draws float64 must have too."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor
        self.first, self.lost, self.last = nn.Linear(16, 32), nn.LayerNorm(32), nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        w = scaled_gradient(self.first.weight, self.factor)
        h = F.dropout(F.linear(x, w, self.first.bias).relu(), 0.3)
        h, last = self.lost(h), self.last
        h = F.linear(h, last.weight) + last.bias if torch.compiler.is_compiling() else last(h)  # rounds once more
        h = h - h.mean(0)  # what `last.bias` adds goes away
        return h.float().square().mean() + h.float().sin().mean()


def test_half_precision_is_judged_by_float64_too() -> None:
    torch.manual_seed(0)
    model, x = Half().bfloat16(), torch.randn(64, 16).bfloat16()
    found = verified(model, (x,))
    assert found.equal and not found.bitwise and "judged by float64" in found.lines[-1]
    assert "gradient of last.bias" in found.lines[-1]
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    for factor in (-1.0, 1.2):
        with pytest.raises(graphopt.VerificationError) as caught:
            verified(Half(factor).bfloat16(), (x,))
        assert caught.value.tensor == "gradient of first.weight"


class Complex(nn.Module):
    """A complex layer, and a phase whose gradient is next to nothing, as only the modulus is looked at."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor
        self.w = nn.Parameter(torch.randn(8, 8, dtype=torch.complex64))
        self.phase = nn.Parameter(torch.randn(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = (x.to(torch.complex64) @ scaled_gradient(self.w, self.factor)) * torch.exp(1j * self.phase)
        if torch.compiler.is_compiling():
            z = z * (1 + 1e-7)
        return z.abs().square().mean()


def test_complex_differences_are_numbers() -> None:
    torch.manual_seed(0)
    x = torch.randn(32, 8)
    found = verified(Complex(), (x,))
    assert found.equal and not found.bitwise
    for factor in (-1.0, 1.001):
        with pytest.raises(graphopt.VerificationError) as caught:
            verified(Complex(factor), (x,))
        assert caught.value.tensor == "gradient of w" and 0 < caught.value.largest_difference < 1e3


def test_distances_of_every_kind() -> None:
    nan, inf = float("nan"), float("inf")
    assert distance(torch.tensor([1 + 1j]), torch.tensor([1 + 2j])) == 1
    assert distance(torch.tensor([nan, inf, 1.0]), torch.tensor([nan, inf, 1.5])) == 0.5
    assert distance(torch.tensor([nan, 1.0]), torch.tensor([1.0, 1.0])) == inf
    assert distance(torch.tensor([inf]), torch.tensor([-inf])) == inf
    assert distance(torch.ones(0), torch.ones(0)) == 0
    a, b = RecordedStep({"x": torch.tensor([1 + 1j])}), RecordedStep({"x": torch.tensor([1 + 1.00001j])})
    (gap,) = differences(a, b)
    assert gap.tolerable and 0 < gap.relative < 1e-4


def test_a_wrong_dropout_mask_is_found_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mask that the backward draws again is another one."""

    class Drops(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = layer(x).relu() * torch.empty_like(x).bernoulli_(0.6) + x
            return x.square().mean()

    def sabotage(step: StepGraph, schedule: Schedule, depot: str) -> Emitted:
        emitted = real(step, schedule, depot)
        if len(schedule) > len(step.ops):
            _swap_draws(emitted.backward)
        return emitted

    real = aot.emit
    torch.manual_seed(0)
    model, x = Drops(), torch.randn(64, 64)
    budget = graphopt.estimate(model, x, cost_model="roofline").minimum_bytes
    monkeypatch.setattr(aot, "emit", sabotage)
    with pytest.raises(graphopt.VerificationError, match="gradient of layers") as caught:
        graphopt.optimize(model, budget, example_inputs=x, verify=True, cost_model="roofline")
    assert "First diverging op: bernoulli" in str(caught.value) and "(recomputed)" in str(caught.value)


def _swap_draws(module: fx.GraphModule) -> None:
    drawn = [node for node in module.graph.nodes if RECOMPUTED in node.meta and "bernoulli" in str(node.args)]
    assert drawn, module.code
    for node in drawn:
        node.target = lambda *args, op=node.target: op(*args).mul_(-1).add_(1)  # in place: it takes no room
    module.recompile()


def test_the_model_is_put_back_where_float64_is_refused() -> None:
    class Refuses(Nothing):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.stem.weight.dtype is torch.float64:
                raise TypeError("no")
            return super().forward(x)

    torch.manual_seed(0)
    model = Refuses()
    kept = {name: (p, p.data_ptr(), p.dtype) for name, p in model.named_parameters()}
    found = verified(model, IMAGES)
    assert "judged by eager's own rounding (in float64 the model raises TypeError)" in found.lines[2]
    assert {name: (p, p.data_ptr(), p.dtype) for name, p in model.named_parameters()} == kept
    with pytest.raises(graphopt.VerificationError):
        verified(Refuses(1.001, "head.weight"), IMAGES)


@pytest.mark.parametrize("change", [lambda t: -t, lambda t: t * 1.001, torch.zeros_like])
def test_another_computation_in_float64_settles_nothing(change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """A model that is another one in float64 gives no leave to differ."""

    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x).square().mean() * (3 if self.layer.weight.dtype is torch.float64 else 1)

    torch.manual_seed(0)
    model, x = Other(), (torch.randn(4, 8),)
    eager = run_step(model, model._call_impl, x, {})
    name = "gradient of layer.weight"
    found = RecordedStep({**eager.tensors, name: change(eager.tensors[name])})
    gap = Difference(name, 1.0, 1.0, torch.float32)
    assert rounding.settle(model, x, {}, eager, found, [gap]).wrong == (gap,)
    assert rounding.settle(model, x, {}, eager, eager, [gap]).wrong == ()

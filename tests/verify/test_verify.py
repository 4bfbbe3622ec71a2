"""Verification: what it compares, and that it finds what is wrong."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import fx, nn

import graphopt
from graphopt.api import verify
from graphopt.capture import aot
from graphopt.device.storages import tensors_in
from graphopt.emit.emit import Emitted
from graphopt.graph.step_graph import StepGraph
from graphopt.plan.choice import Choice
from graphopt.problem.schedule import Schedule
from graphopt.verify.step_result import differences, loss_of, run_step, same_bits
from tests.api.test_optimize import BATCH, Blocks, budget_of


def test_a_planned_step_is_equal_and_measured() -> None:
    torch.manual_seed(0)
    model = Blocks()
    budget = budget_of(0.5)
    found = verify.verify_model(model, BATCH, mem_budget=budget, time_rounds=1)
    assert found.equal and found.bitwise and "bit by bit" in found.lines[0]
    assert found.report.measured is not None
    assert found.report.measured.peak_bytes <= budget < found.report.measured.eager_peak_bytes
    assert not hasattr(model, "graphopt")


def test_what_is_frozen_inside_a_training_model_stays_frozen() -> None:
    torch.manual_seed(0)
    model = Blocks()
    model.norms[0].eval()
    eager = run_step(model, model._call_impl, BATCH, {})
    graphopt.optimize(model, budget_of(0.5), example_inputs=BATCH, verify=True)
    assert not model.norms[0].training and model.norms[1].training and model.training
    verify.verify_model(model, BATCH, mem_budget="64MiB", time_rounds=1)
    assert not model.norms[0].training and model.norms[1].training
    assert differences(eager, run_step(model, model, BATCH, {})) == []
    assert torch.equal(eager.tensors["buffer norms.0.running_mean"], torch.zeros(32))


def test_a_model_in_eval_mode_is_verified_as_it_trains() -> None:
    model = Blocks().eval()
    found = verify.verify_model(model, BATCH, mem_budget="64MiB", time_rounds=0)
    assert found.bitwise and found.report.plan.graphs and not any(module.training for module in model.modules())


def test_measuring_leaves_buffers_and_generators() -> None:
    torch.manual_seed(0)
    model = Blocks()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator = torch.get_rng_state()
    verify.verify_model(model, BATCH, mem_budget="64MiB", time_rounds=1)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_verifying_leaves_everything_as_it_was() -> None:
    torch.manual_seed(0)
    model = Blocks()
    model(*BATCH).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator = torch.get_rng_state()
    graphopt.optimize(model, budget_of(0.5), example_inputs=BATCH, verify=True)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(p.grad, gradients[name]) for name, p in model.named_parameters())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_a_wrong_op_is_found_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every recomputed relu replaced by another function: the gradients are plausible, and wrong."""

    def sabotage(step: StepGraph, schedule: Schedule, depot: str) -> Emitted:
        emitted = real(step, schedule, depot)
        if len(schedule) > len(step.ops):
            _swap_relu(emitted.backward)
        return emitted

    real = aot.emit
    monkeypatch.setattr(aot, "emit", sabotage)
    torch.manual_seed(0)
    model = Blocks()
    budget = budget_of(0.0)
    with pytest.raises(graphopt.VerificationError, match="gradient of") as caught:
        graphopt.optimize(model, budget, example_inputs=BATCH, verify=True)
    assert caught.value.exit_code == 4 and caught.value.largest_difference > 0
    assert "gradient of" in caught.value.tensor
    assert "First diverging op: relu" in str(caught.value) and "recomputed" in str(caught.value)


def _swap_relu(module: fx.GraphModule) -> None:
    found = module.graph.find_nodes(op="call_function", target=torch.ops.aten.relu.default)
    assert found
    for node in found:
        node.target = torch.ops.aten.sin.default
    module.recompile()


def test_a_model_that_asks_whether_it_is_compiled_is_told_apart() -> None:
    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.layer(x).tanh()
            return (y * (1 + 1e-6)).sum() if torch.compiler.is_compiling() else y.sum()

    torch.manual_seed(0)
    found = verify.verify_model(Asks(), (torch.randn(32, 64),), mem_budget="1MiB", time_rounds=0)
    assert found.equal and not found.bitwise
    assert "before graphopt touches them" in found.lines[1] and "first at sum_1 = aten.sum" in found.lines[1]


def test_a_model_that_changes_much_under_capture_fails() -> None:
    class Lies(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x).sum() * (2 if torch.compiler.is_compiling() else 1)

    with pytest.raises(graphopt.VerificationError, match="capture changes the model's results"):
        verify.verify_model(Lies(), (torch.randn(4, 8),), mem_budget="1MiB")


def test_same_bits_sees_zeros_signs_and_nans() -> None:
    nan = torch.tensor([float("nan"), 1.0])
    assert same_bits(nan, nan.clone())
    assert not same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert same_bits(torch.ones(2, 3).t(), torch.ones(3, 2))
    assert same_bits(torch.ones(0), torch.ones(0))


def test_outputs_of_every_kind_have_a_loss() -> None:
    @dataclass
    class Out:
        first: torch.Tensor
        second: dict[str, torch.Tensor]

    x = torch.randn(3, requires_grad=True)
    assert loss_of(x.sum()).ndim == 0
    assert loss_of({"loss": x.sum(), "logits": x}).ndim == 0
    out = Out(x * 2, {"a": x * 3})
    assert len(tensors_in(out)) == 2 and loss_of(out).requires_grad
    with pytest.raises(graphopt.UsageError, match="nothing to train"):
        loss_of("text")


def test_run_step_compares_gradients_of_inputs_too() -> None:
    model, x = nn.Linear(3, 3), torch.randn(2, 3, requires_grad=True)
    result = run_step(model, model, (x,), {})
    assert "gradient of input 0" in result.tensors and x.grad is None
    assert differences(result, run_step(model, model, (x,), {})) == []


def test_the_choice_names_what_there_is() -> None:
    with pytest.raises(graphopt.UsageError, match="none, sqrt_n, chain, search, auto"):
        Choice(planner="best")

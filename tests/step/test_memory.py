"""The bytes of a whole step: what the update holds and makes is in the plan, for every optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import nn

import graphopt
from graphopt.device import measure
from graphopt.kernels import use
from graphopt.step.train_step import TrainStep

Optimizers = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


def model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*[m for _ in range(3) for m in (nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64))]).to(dtype)


def make(optimizer: Optimizers, dtype: torch.dtype = torch.float32, **options: Any) -> tuple[TrainStep, Any]:
    module = model(dtype)
    batch = (torch.randn(2, 64).to(dtype), torch.randn(2, 64).to(dtype))
    options = {"cost_model": "roofline", "example_inputs": batch, **options}
    return graphopt.train_step(module, nn.functional.mse_loss, optimizer(module.parameters()), **options), batch


def measured(step: TrainStep, batch: Any) -> int:
    step(*batch)
    state = [t for entry in step.optimizer.state.values() for t in entry.values() if isinstance(t, torch.Tensor)]
    held = [*step.accumulators, *step.state_dict()["masters"].values()]
    return measure.peak_bytes(lambda: step(*batch), [*step.model.parameters(), *batch, *state, *held], "cpu")


OPTIMIZERS: dict[str, Optimizers] = {
    "adamw": lambda p: torch.optim.AdamW(p, fused=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "rmsprop": lambda p: torch.optim.RMSprop(p),
    "rmsprop, foreach": lambda p: torch.optim.RMSprop(p, foreach=True),
    "adagrad, foreach": lambda p: torch.optim.Adagrad(p, foreach=True),
    "adafactor": lambda p: torch.optim.Adafactor(p),
}


@pytest.mark.parametrize(("accumulate", "kernels"), [(1, "auto"), (2, "auto"), (2, "stock")])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_peak_of_a_step_with_its_update_is_predicted(name: str, accumulate: int, kernels: Any) -> None:
    with use(kernels):
        step, batch = make(OPTIMIZERS[name], accumulate=accumulate)
        assert step.plan.peak_bytes == pytest.approx(measured(step, batch), rel=0.005)


def test_stock_kernels_make_a_product_before_it_is_added_and_the_plan_says_so() -> None:
    step, batch = make(OPTIMIZERS["sgd"], accumulate=2)
    fused = step.plan.peak_bytes
    assert "accumulate_mm_" in step._last_micros[0].module.code
    with use("stock"):
        assert step.plan.peak_bytes == fused
        step(*batch)
    assert "accumulate_mm_" not in step._last_micros[0].module.code
    assert step.plan.peak_bytes > fused


@pytest.mark.parametrize("kernels", ["stock", "auto"])
@pytest.mark.parametrize("name", ["adamw", "sgd", "rmsprop"])
def test_half_gradients_with_masters_clipped_and_scaled(name: str, kernels: Any) -> None:
    with use(kernels):
        options = {"clip": graphopt.ClipNorm(1.0), "loss_scale": graphopt.ConstantLossScale(8.0)}
        # half matrix products have scratch, which only the profiler's figures tell
        step, batch = make(OPTIMIZERS[name], torch.bfloat16, masters=True, cost_model="auto", **options)
        assert step.plan.peak_bytes == pytest.approx(measured(step, batch), rel=0.01)


def test_what_the_update_takes_is_in_the_report_and_in_the_error() -> None:
    step, _ = make(OPTIMIZERS["rmsprop, foreach"])
    report = step.report
    assert report.step is not None
    # a set of temporaries as large as the parameters
    parameter_bytes = report.plan.resident_bytes["parameters"]
    assert report.step.tail_bytes["update workspace"] == pytest.approx(parameter_bytes, rel=0.01)
    text = str(report)
    assert "update workspace" in text and "The peak is at the optimizer's update" in text
    assert sum(step.plan.resident_bytes.values()) + sum(report.step.tail_bytes.values()) == step.plan.peak_bytes

    needed = step.plan.minimum_bytes
    assert make(OPTIMIZERS["rmsprop, foreach"], mem_budget=needed)[0].plan.peak_bytes <= needed
    with pytest.raises(graphopt.BudgetError, match=r"the update of the parameters alone takes") as error:
        make(OPTIMIZERS["rmsprop, foreach"], mem_budget=needed - 1)
    assert error.value.minimum_bytes == needed and any("update workspace" in driver for driver in error.value.drivers)


def test_an_update_in_the_backward_leaves_nothing_for_the_end() -> None:
    step, batch = make(OPTIMIZERS["adamw"], update_in_backward=True)
    assert step.report.step is not None and step.report.step.tail_bytes == {}
    assert step.plan.resident_bytes["optimizer"] > 0
    assert step.plan.peak_bytes == pytest.approx(measured(step, batch), rel=0.01)


def test_several_sizes_of_batch_have_the_highest_peak() -> None:
    step, _ = make(OPTIMIZERS["sgd"])
    small = step.plan.peak_bytes
    step(torch.randn(512, 64), torch.randn(512, 64))
    large = step.plan.peak_bytes
    assert large > small + 512 * 64 * 4
    step(torch.randn(4, 64), torch.randn(4, 64))
    assert step.plan.peak_bytes == large and step.plan.resident_bytes["inputs"] == 2 * 512 * 64 * 4

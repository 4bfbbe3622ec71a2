"""Gradients that are not finite: what is skipped, what stays as it was, and how the scale moves."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn, optim

import graphopt
from tests.support.loops import make_pair, state_of
from tests.support.models import Noisy, Perceptron, seeded, vectors
from tests.support.tensors import KINDS
from tests.support.zoo import differences

CONSTANT = graphopt.ConstantLossScale(2.0**8)
OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter]], optim.Optimizer]] = {
    "momentum": lambda p: optim.SGD(p, 0.01, momentum=0.9, dampening=0.1, fused=True),
    "adam": lambda p: optim.Adam(p, 0.01, amsgrad=True, fused=True),
    "rmsprop": lambda p: optim.RMSprop(p, 0.01),
}


def poisoned(batch: Any, row: int, value: float) -> Any:
    """The same batch with one element that is not finite."""
    (x, y), kwargs = batch
    x = x.clone()
    x[row, 2] = value
    return (x, y), kwargs


@pytest.mark.parametrize("kernels", KINDS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("row", "value"), [(0, float("inf")), (7, float("nan"))], ids=["first", "last"])
def test_an_overflow_in_one_micro_batch_changes_nothing(optimizer: str, row: int, value: float, kernels: Any) -> None:
    pair = make_pair(seeded(Perceptron), OPTIMIZERS[optimizer], accumulate=4, loss_scale=CONSTANT)
    batches = vectors(4)
    pair.kernels = kernels
    pair.run(batches[:2], exactly=False)
    before = state_of(pair.step.model, pair.step.optimizer)
    with graphopt.kernels.use(kernels):
        out = pair.step(*poisoned(batches[2], row, value)[0])
        assert out.skipped and not out.loss.isfinite()
        assert differences(before, state_of(pair.step.model, pair.step.optimizer)) == {}
        assert not pair.step(*batches[3][0]).skipped


@pytest.mark.parametrize("kernels", KINDS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("accumulate", [1, 4])
def test_an_overflow_at_the_first_step_leaves_no_trace(optimizer: str, accumulate: int, kernels: Any) -> None:
    options = {"accumulate": accumulate, "loss_scale": CONSTANT}
    batches = vectors(4)
    late = make_pair(seeded(Perceptron), OPTIMIZERS[optimizer], **options).step
    fresh = make_pair(seeded(Perceptron), OPTIMIZERS[optimizer], **options).step
    with graphopt.kernels.use(kernels):
        assert late(*poisoned(batches[0], 3, float("inf"))[0]).skipped
        assert not late.optimizer.state
        for (x, y), _ in batches[1:]:
            late(x, y), fresh(x, y)
    assert differences(state_of(late.model, late.optimizer), state_of(fresh.model, fresh.optimizer)) == {}


def test_state_loaded_after_a_skipped_first_step_is_kept() -> None:
    batches = vectors(4)
    pair = make_pair(seeded(Perceptron), OPTIMIZERS["adam"], loss_scale=CONSTANT)
    other = make_pair(seeded(Perceptron), OPTIMIZERS["adam"], loss_scale=CONSTANT)
    other.run(batches[:2])
    pair.step(*poisoned(batches[0], 3, float("inf"))[0])
    for model, optimizer in ((pair.step.model, pair.step.optimizer), (pair.loop.model, pair.loop.optimizer)):
        model.load_state_dict(other.step.model.state_dict())
        optimizer.load_state_dict(deepcopy(other.step.optimizer.state_dict()))
    pair.run(batches[2:])
    assert pair.differences() == {}


def test_without_a_loss_scale_what_is_not_finite_goes_in() -> None:
    pair = make_pair(seeded(Perceptron), OPTIMIZERS["momentum"])
    assert not pair.step(*poisoned(vectors(1)[0], 0, float("nan"))[0]).skipped
    assert all(parameter.isnan().any() for parameter in pair.step.model.parameters())


@pytest.mark.parametrize(
    ("accumulate", "scale", "per_group"),
    [(1, None, False), (4, None, True), (4, graphopt.DynamicLossScale(2.0**8), False)],
)
def test_an_error_for_a_norm_that_is_not_finite_comes_before_any_write(
    accumulate: int, scale: Any, per_group: bool
) -> None:
    clip = graphopt.ClipNorm(1e9, error_if_nonfinite=True, per_group=per_group)
    pair = make_pair(seeded(Perceptron), OPTIMIZERS["adam"], accumulate=accumulate, loss_scale=scale, clip=clip)
    batches = vectors(4)
    pair.run(batches[:2])
    before = state_of(pair.step.model, pair.step.optimizer), pair.step.loss_scale
    with pytest.raises(graphopt.NonFiniteGradientError, match="as they were before this step"):
        pair.step(*poisoned(batches[0], 7, float("inf"))[0])
    assert differences(before[0], state_of(pair.step.model, pair.step.optimizer)) == {}
    assert pair.step.loss_scale == before[1]
    pair.run(batches[2:])
    assert pair.differences() == {}


def test_buffers_of_the_forward_change_in_a_skipped_step() -> None:
    # as eager's do: the forward ran
    pair = make_pair(seeded(Noisy), OPTIMIZERS["momentum"], accumulate=2, loss_scale=CONSTANT)
    ((x, y), _) = vectors(1)[0]
    y[3, 3] = float("inf")
    pair.run([((x, y), {})], exactly=False)
    assert pair.skipped == 1 and pair.differences() == {}
    assert pair.step.model.norm.num_batches_tracked == 2  # type: ignore[union-attr]


def run_scale(how: graphopt.DynamicLossScale, overflows: str) -> list[float]:
    """The scale after each step of a training in which `x` marks those that overflow."""
    step = make_pair(seeded(Perceptron), OPTIMIZERS["momentum"], loss_scale=how).step
    batch = vectors(1)[0]
    scales = []
    for mark in overflows:
        out = step(*(poisoned(batch, 0, float("nan")) if mark == "x" else batch)[0])
        assert out.skipped is (mark == "x") and float(out.loss_scale) == (scales or [how.initial])[-1]
        scales.append(step.loss_scale)
    return scales


def test_the_scale_grows_and_falls_as_torch_says() -> None:
    how = graphopt.DynamicLossScale(1024.0, growth=4.0, backoff=0.25, interval=2)
    marks = "..x...xx.."
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_factor=4.0, backoff_factor=0.25, growth_interval=2)
    weight = nn.Parameter(torch.ones(1))
    optimizer = optim.SGD([weight], 0.0)
    expected = []
    for mark in marks:
        scaler.scale((weight * float("inf" if mark == "x" else 1)).sum()).backward()
        scaler.step(optimizer), scaler.update(), optimizer.zero_grad()
        expected.append(scaler.get_scale())
    assert run_scale(how, marks) == expected


def test_the_scale_keeps_to_its_bounds() -> None:
    how = graphopt.DynamicLossScale(8.0, growth=4.0, backoff=0.25, interval=1, lowest=4.0, highest=64.0)
    assert run_scale(how, "...xxx.") == [32.0, 64.0, 64.0, 16.0, 4.0, 4.0, 16.0]


def test_hysteresis_forgives_overflows_until_the_scale_grows() -> None:
    how = graphopt.DynamicLossScale(64.0, interval=2, hysteresis=2)
    assert run_scale(how, "x.x..x.") == [64.0, 64.0, 32.0, 32.0, 64.0, 64.0, 64.0]


def test_a_constant_scale_stays() -> None:
    step = make_pair(seeded(Perceptron), OPTIMIZERS["momentum"], loss_scale=CONSTANT).step
    batch = vectors(1)[0]
    assert step(*poisoned(batch, 0, float("nan"))[0]).skipped and step.loss_scale == CONSTANT.scale
    assert not step(*batch[0]).skipped and step.loss_scale == CONSTANT.scale


@pytest.mark.parametrize("scale", [2.0**-10, 3.0, 2.0**30])
def test_any_scale_gives_the_same_step(scale: float) -> None:
    # powers of two change exponents alone; another scale rounds each gradient once more
    plain = make_pair(seeded(Perceptron), OPTIMIZERS["momentum"]).step
    scaled = make_pair(seeded(Perceptron), OPTIMIZERS["momentum"], loss_scale=graphopt.ConstantLossScale(scale)).step
    with graphopt.kernels.use("stock"):
        for (x, y), _ in vectors(3):
            plain(x, y), scaled(x, y)
    found = differences(state_of(plain.model, plain.optimizer), state_of(scaled.model, scaled.optimizer))
    assert max(found.values(), default=0.0) <= (1e-6 if scale == 3.0 else 0.0)

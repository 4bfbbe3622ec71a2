"""Training that is saved, loaded and gone on with; learning rate schedulers; copies of the model."""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn, optim
from torch.optim import lr_scheduler

import graphopt
from tests.support.loops import make_pair, state_of
from tests.support.models import Noisy, Perceptron, seeded, vectors
from tests.support.zoo import differences

SCALE = graphopt.DynamicLossScale(2.0**8, interval=2)
OPTIMIZERS: dict[str, Callable[..., optim.Optimizer]] = {
    "sgd": lambda p: optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
    "adamw": lambda p: optim.AdamW(p, 0.01, amsgrad=True),
    "adagrad": lambda p: optim.Adagrad(p, 0.1),
}


def started(optimizer: str, dtype: torch.dtype) -> graphopt.TrainStep:
    model = seeded(Noisy)().to(dtype)
    options = {"accumulate": 2, "loss_scale": SCALE, "clip": graphopt.ClipNorm(0.5), "masters": dtype.itemsize < 4}
    return graphopt.train_step(model, None, OPTIMIZERS[optimizer](model.parameters()), cost_model="roofline", **options)


def saved(step: graphopt.TrainStep) -> bytes:
    file = io.BytesIO()
    torch.save(
        {
            "model": step.model.state_dict(),
            "optimizer": step.optimizer.state_dict(),
            "step": step.state_dict(),
            "generator": torch.get_rng_state(),
        },
        file,
    )
    return file.getvalue()


def load(step: graphopt.TrainStep, state: bytes) -> None:
    loaded = torch.load(io.BytesIO(state))
    step.model.load_state_dict(loaded["model"])
    step.optimizer.load_state_dict(loaded["optimizer"])
    step.load_state_dict(loaded["step"])
    torch.set_rng_state(loaded["generator"])


def everything(step: graphopt.TrainStep) -> dict[str, torch.Tensor]:
    held = [p for group in step.optimizer.param_groups for p in group["params"]]
    state = {f"{i} {key}": v for i, p in enumerate(held) for key, v in step.optimizer.state[p].items()}
    return {**step.model.state_dict(), **{str(i): p for i, p in enumerate(held)}, **state}


@pytest.mark.fast(1)
@pytest.mark.parametrize(
    ("optimizer", "dtype", "overflow_first"),
    [
        ("sgd", torch.float32, False),
        ("sgd", torch.float32, True),
        ("adamw", torch.float32, False),
        ("adagrad", torch.float32, True),
        ("adamw", torch.bfloat16, False),
        ("adamw", torch.bfloat16, True),
    ],
)
def test_continued_is_bitwise_uninterrupted(optimizer: str, dtype: torch.dtype, overflow_first: bool) -> None:
    batches = vectors(6, dtype=dtype)
    if overflow_first:
        ((x, y), _) = batches[0]
        batches = [((x, y * float("inf")), {}), *batches[:1], *batches[3:]]
    torch.manual_seed(3)
    whole = started(optimizer, dtype)
    for (x, y), _ in batches[: 1 if overflow_first else 3]:
        whole(x, y)
    state = saved(whole)
    for (x, y), _ in batches[1 if overflow_first else 3 :]:
        expected = whole(x, y)
    generator = torch.get_rng_state()
    again = started(optimizer, dtype)
    load(again, state)
    for (x, y), _ in batches[1 if overflow_first else 3 :]:
        found = again(x, y)
    assert torch.equal(found.loss, expected.loss) and torch.equal(torch.get_rng_state(), generator)
    assert again.loss_scale == whole.loss_scale and again.state_dict()["loss_scale"] == whole.state_dict()["loss_scale"]
    assert differences(everything(again), everything(whole)) == {}


def test_loading_in_the_middle_goes_back() -> None:
    batches = vectors(4)
    step = started("adamw", torch.float32)
    step(*batches[0][0])
    state, losses = saved(step), []
    for _ in range(2):
        load(step, state)
        losses.append([float(step(x, y).loss) for (x, y), _ in batches[1:]])
    assert losses[0] == losses[1]


def test_a_checkpoint_of_the_eager_loop_goes_on_here_and_back() -> None:
    pair = make_pair(seeded(Perceptron), lambda p: optim.AdamW(p, 0.01, fused=True))
    batches = vectors(6)
    for (x, y), _ in batches[:2]:
        pair.loop(x, y)
    for source, target in ((pair.loop, pair.step), (pair.step, pair.loop)):
        target.model.load_state_dict(source.model.state_dict())
        target.optimizer.load_state_dict(deepcopy(source.optimizer.state_dict()))
        pair.run(batches[2:])
        assert pair.differences() == {}


def test_state_of_another_step_is_refused() -> None:
    step, other = started("sgd", torch.float32), started("sgd", torch.bfloat16)
    with pytest.raises(graphopt.UsageError, match="masters"):
        step.load_state_dict(other.state_dict())
    plain = make_pair(seeded(Perceptron), OPTIMIZERS["sgd"]).step
    with pytest.raises(graphopt.UsageError, match="loss scale"):
        plain.load_state_dict(step.state_dict())


SCHEDULERS: dict[str, Callable[[optim.Optimizer], Any]] = {
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.5),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=10),  # moves momentum, too
}


@pytest.mark.fast(3)
@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_schedulers(optimizer: str, scheduler: str, by_hand: bool) -> None:
    make: Callable[..., optim.Optimizer] = {
        "sgd": lambda p: optim.SGD(p, 0.1, momentum=0.9, fused=True),
        "adamw": lambda p: optim.AdamW(p, 0.01, fused=True),
    }[optimizer]
    pair = make_pair(seeded(Perceptron), make, accumulate=2)
    ours, theirs = SCHEDULERS[scheduler](pair.step.optimizer), SCHEDULERS[scheduler](pair.loop.optimizer)
    if not by_hand:
        pair.step = graphopt.train_step(
            pair.step.model, None, pair.step.optimizer, accumulate=2, lr_scheduler=ours, cost_model="roofline"
        )
    for batch in vectors(5):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pair.run([batch])
            theirs.step()
            if by_hand:
                ours.step()
        assert ours.get_last_lr() == theirs.get_last_lr()
    assert pair.differences() == {}


def test_the_scheduler_does_not_advance_on_a_skipped_step() -> None:
    model = seeded(Perceptron)()
    optimizer = optim.SGD(model.parameters(), 0.1)
    scheduler = lr_scheduler.ExponentialLR(optimizer, 0.5)
    step = graphopt.train_step(model, None, optimizer, loss_scale=SCALE, lr_scheduler=scheduler)
    ((x, y), _) = vectors(1)[0]
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for factor in (float("inf"), 1.0, float("nan"), 1.0):
            step(x * factor, y)
            rates.append(optimizer.param_groups[0]["lr"])
    assert rates == [0.1, 0.05, 0.05, 0.025]


def test_a_rate_changed_by_hand_is_used() -> None:
    pair = make_pair(seeded(Perceptron), lambda p: optim.SGD(p, 0.1, fused=True))
    for rate, batch in zip((0.1, 0.7, 0.0), vectors(3), strict=True):
        for side in (pair.step, pair.loop):
            side.optimizer.param_groups[0]["lr"] = rate
        pair.run([batch])
    assert pair.differences() == {} and len(pair.step._windows) == 1


def test_a_copy_of_the_model_is_a_model_of_its_own() -> None:
    pair = make_pair(seeded(Perceptron), OPTIMIZERS["sgd"], accumulate=2)
    batches = vectors(3)
    pair.step(*batches[0][0])
    model: nn.Module = pair.step.model
    average, through_bytes = deepcopy(model), pickle.loads(pickle.dumps(model))
    before = {name: value.clone() for name, value in average.state_dict().items()}
    pair.step(*batches[1][0])
    assert differences(average.state_dict(), before) == {} == differences(through_bytes.state_dict(), before)
    assert differences(model.state_dict(), before) != {}
    second = graphopt.train_step(average, None, OPTIMIZERS["sgd"](average.parameters()), accumulate=2)
    second(*batches[2][0])
    assert differences(state_of(average, second.optimizer), before) != {}


def test_optimizer_state_of_another_shape_is_refused_before_anything_reads_it() -> None:
    model = nn.Linear(8, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    step = graphopt.train_step(model, nn.functional.mse_loss, optimizer, cost_model="roofline")
    step(torch.randn(4, 8), torch.randn(4, 4))
    state = optimizer.state_dict()
    for number, held in state["state"].items():
        state["state"][number] = {key: value[:2] if value.ndim else value for key, value in held.items()}
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer.load_state_dict(state)
    with pytest.raises(graphopt.UsageError, match=r"exp_avg of weight has the shape \[2, 8\]"):
        step(torch.randn(4, 8), torch.randn(4, 4))
    assert all(map(torch.equal, before, model.parameters()))

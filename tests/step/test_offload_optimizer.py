"""Optimizer state in a file: bits, bytes, state dicts, and what it does not go with."""

from __future__ import annotations

import copy
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphopt
from graphopt.base.errors import OffloadError, UsageError
from graphopt.device.elsewhere import holder_of
from graphopt.device.measure import peak_bytes
from graphopt.kernels.streaming import ops as streaming

X, Y = torch.randn(32, 128), torch.randn(32, 128)


def build(half: bool = False) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Sequential(nn.Linear(128, 256), nn.GELU(), nn.Linear(256, 128)) for _ in range(2)])
    return model.bfloat16() if half else model


def mean_square(found: Tensor, wanted: Tensor) -> Tensor:
    return (found.float() - wanted).square().mean()


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    """Two groups, of which one has no decay."""
    weights, biases = ([p for p in model.parameters() if (p.ndim > 1) is wide] for wide in (True, False))
    return torch.optim.AdamW([{"params": weights}, {"params": biases, "weight_decay": 0.0}], lr=1e-2)


def momentum(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)


def tensors_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    held = [optimizer.state[p] for group in optimizer.param_groups for p in group["params"] if p in optimizer.state]
    state = [each[key] for each in held for key in sorted(each) if isinstance(each[key], Tensor)]
    return [*model.parameters(), *model.buffers(), *state]


LOOPS: dict[str, tuple[Callable[[nn.Module], torch.optim.Optimizer], dict[str, Any]]] = {
    "plain": (adamw, {}),
    "clipped": (adamw, {"clip": graphopt.ClipNorm(0.1)}),
    "accumulated": (momentum, {"accumulate": 3}),
    "overflowing": (adamw, {"loss_scale": graphopt.DynamicLossScale(2.0**24, interval=2)}),
    "masters": (adamw, {"masters": True}),
    "in the backward": (adamw, {"update_in_backward": True}),
    "momentum in the backward": (momentum, {"update_in_backward": True, "clip": graphopt.ClipValue(1e-3)}),
}


@pytest.mark.fast(1)
@pytest.mark.parametrize("name", LOOPS)
def test_bits_are_the_same_and_state_takes_no_memory(name: str, tmp_path: Path) -> None:
    make, options = LOOPS[name]
    scale = 1e6 if name == "overflowing" else 1.0
    steps, peaks, held = [], [], []
    for where in (None, tmp_path):
        model = build(half="masters" in options)
        optimizer = make(model)
        step = graphopt.train_step(model, mean_square, optimizer, offload_optimizer=where, **options)
        x = X.bfloat16() if "masters" in options else X
        losses = [step(x, scale * Y).loss for _ in range(3)]
        there = [*tensors_of(model, optimizer), *step.accumulators, x, Y]
        peaks.append(peak_bytes(lambda step=step, x=x: step(x, Y), there, "cpu"))  # type: ignore[misc]
        steps.append(step)
        held.append([*losses, *tensors_of(model, optimizer)])
    plain, moved = steps
    assert all(torch.equal(a, b) for a, b in zip(*held, strict=True))
    assert peaks[1] <= moved.plan.peak_bytes and peaks[1] < peaks[0]
    assert moved.plan.resident_bytes["optimizer"] < 0.1 * plain.plan.resident_bytes["optimizer"]
    assert moved.history[-1].measured_bytes <= moved.plan.peak_bytes
    away = [t for t in tensors_of(moved.model, moved.optimizer) if holder_of(t) is not None]
    assert away and "optimizer state" in str(moved.report) and "in a file" in str(moved.report)


def test_state_dicts_are_ordinary_and_what_is_loaded_goes_to_the_file(tmp_path: Path) -> None:
    model = build()
    optimizer = adamw(model)
    step = graphopt.train_step(model, mean_square, optimizer, offload_optimizer=tmp_path)
    step(X, Y)
    saved = tmp_path / "state.pt"
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, saved)
    before = copy.deepcopy(optimizer.state_dict())
    losses = [step(X, Y).loss for _ in range(2)]

    # goes on in the same step, and in a plain loop without graphopt
    model.load_state_dict(torch.load(saved)["model"])
    optimizer.load_state_dict(torch.load(saved)["optimizer"])
    weight = model[0][0].weight  # type: ignore[index]
    assert holder_of(optimizer.state[weight]["exp_avg"]) is not None
    again = [step(X, Y).loss for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(losses, again, strict=True))
    other = build()
    plain = adamw(other)
    other.load_state_dict(torch.load(saved)["model"])
    plain.load_state_dict(torch.load(saved)["optimizer"])
    stepping = graphopt.train_step(other, mean_square, plain)
    assert torch.equal(stepping(X, Y).loss, losses[0]) and torch.equal(stepping(X, Y).loss, losses[1])
    # what was copied before it was overwritten is what it was
    loaded = torch.load(saved)["optimizer"]["state"]
    assert all(torch.equal(before["state"][i][key], loaded[i][key]) for i in loaded for key in loaded[i])


def test_state_that_is_there_goes_to_the_file_before_the_first_step(tmp_path: Path) -> None:
    models = build(), build()
    optimizers = [adamw(model) for model in models]
    for model, optimizer in zip(models, optimizers, strict=True):
        for _ in range(2):
            mean_square(model(X), Y).backward()
            optimizer.step()
            optimizer.zero_grad()
    places = None, tmp_path
    steps = [
        graphopt.train_step(m, mean_square, o, offload_optimizer=w)
        for m, o, w in zip(models, optimizers, places, strict=True)
    ]
    weight = models[1][0][0].weight  # type: ignore[index]
    assert holder_of(optimizers[1].state[weight]["exp_avg"]) is not None
    assert torch.equal(steps[0](X, Y).loss, steps[1](X, Y).loss)
    found = [tensors_of(m, o) for m, o in zip(models, optimizers, strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_disk_that_fails_is_told_of(tmp_path: Path) -> None:
    model = build()
    optimizer = adamw(model)
    step = graphopt.train_step(model, mean_square, optimizer, offload_optimizer=tmp_path)
    step(X, Y)
    weight = model[0][0].weight  # type: ignore[index]
    store = holder_of(optimizer.state[weight]["exp_avg"])
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    store.lane.fails("broken", 3)  # type: ignore[union-attr]
    with pytest.raises(OffloadError, match="Load a checkpoint, and build the step anew"):
        step(X, Y)
    with pytest.raises(OffloadError, match=r"not whole, as a transfer failed before.*build the step anew"):
        step(X, Y)

    optimizer = adamw(model)
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    anew = graphopt.train_step(model, mean_square, optimizer, offload_optimizer=tmp_path)
    other = build()
    usual = graphopt.train_step(other, mean_square, adamw(other))
    usual(X, Y)
    assert torch.equal(anew(X, Y).loss, usual(X, Y).loss)


def test_what_it_does_not_go_with_is_said(tmp_path: Path) -> None:
    model = build()
    with pytest.raises(UsageError, match="This RMSprop steps by itself"):
        graphopt.train_step(model, mean_square, torch.optim.RMSprop(model.parameters()), offload_optimizer=tmp_path)
    for where, message in [
        (3, "expected 'host', 'file' or a folder"),
        ("host", "model is on cpu"),
        ("no", "no folder"),
    ]:
        with pytest.raises(UsageError, match=f"offload_optimizer.*{message}"):
            graphopt.train_step(model, mean_square, adamw(model), offload_optimizer=where)  # type: ignore[arg-type]


def test_updates_go_into_the_backward_where_nothing_fits_otherwise() -> None:
    def step_in(budget_bytes: int | None, **options: Any) -> graphopt.TrainStep:
        model = build()
        return graphopt.train_step(model, mean_square, momentum(model), budget_bytes, example_inputs=(X, Y), **options)

    with pytest.raises(graphopt.BudgetError) as least:
        step_in(1, update_in_backward=False)
    with pytest.raises(graphopt.BudgetError) as lower:
        step_in(1)
    assert lower.value.minimum_bytes < least.value.minimum_bytes
    roomy, tight, usual = step_in(least.value.minimum_bytes), step_in(lower.value.minimum_bytes), step_in(None)
    why = "as nothing fits otherwise"
    assert why not in " ".join(str(roomy.report).split()) and why in " ".join(str(tight.report).split())
    for _ in range(3):
        losses = [step(X, Y).loss for step in (roomy, tight, usual)]
        assert torch.equal(losses[0], losses[1]) and torch.equal(losses[0], losses[2])
    assert tight.history[-1].measured_bytes <= lower.value.minimum_bytes
    pairs = zip(tight.model.parameters(), usual.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("options", [{"clip": graphopt.ClipNorm(1.0)}, {"accumulate": 2}], ids=["norm", "accumulated"])
def test_updates_stay_behind_the_backward_where_something_is_in_the_way(options: dict[str, Any]) -> None:
    def least(**more: Any) -> int:
        model = build()
        with pytest.raises(graphopt.BudgetError) as error:
            graphopt.train_step(model, mean_square, momentum(model), 1, example_inputs=(X, Y), **options, **more)
        return error.value.minimum_bytes

    assert least() == least(update_in_backward=False)


_FORKS = """
import gc, os, sys
import torch
import graphopt

x = torch.randn(8, 128)
model = torch.nn.Linear(128, 128)
optimizer = torch.optim.AdamW(model.parameters())
step = graphopt.train_step(model, torch.nn.functional.mse_loss, optimizer, offload_optimizer="file")
step(x, x)
before = optimizer.state[model.weight]["exp_avg"].clone()
child = os.fork()
if not child:
    try:
        step(x, x)
    except graphopt.OffloadError as error:
        refused = "forked" in str(error)
    del step
    optimizer.state.clear()
    gc.collect()
    os._exit(0 if refused else 1)
code = os.waitpid(child, 0)[1]
same = torch.equal(before, optimizer.state[model.weight]["exp_avg"])
step(x, x)
sys.exit(code or not same)
"""


def test_a_process_that_is_forked_leaves_the_state_alone() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", _FORKS], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


def test_what_is_planned_again_knows_that_the_state_is_elsewhere(tmp_path: Path) -> None:
    """A ragged batch, a second step over the same optimizer, and state that was loaded before the step was made."""
    model = build()
    optimizer = adamw(model)
    with pytest.raises(graphopt.BudgetError) as least:
        graphopt.train_step(model, mean_square, adamw(model), 1, example_inputs=(X, Y), offload_optimizer=tmp_path)
    budget_bytes = least.value.minimum_bytes + 4096

    def step_in_budget(optimizer: torch.optim.Optimizer) -> graphopt.TrainStep:
        return graphopt.train_step(model, mean_square, optimizer, budget_bytes, offload_optimizer=tmp_path)

    first = step_in_budget(optimizer)
    for rows in (32, 32, 20, 32):
        first(X[:rows], Y[:rows])
    again = step_in_budget(optimizer)
    again(X, Y)
    saved = copy.deepcopy(optimizer.state_dict())
    resumed = adamw(model)
    resumed.load_state_dict(saved)
    last = step_in_budget(resumed)
    last(X, Y)
    for step in (first, again, last):
        assert max(each.measured_bytes for each in step.history) <= budget_bytes


@pytest.mark.parametrize("cost_model", ["auto", "roofline"])
def test_blocks_of_updates_in_the_backward_are_planned(cost_model: str, tmp_path: Path) -> None:
    def step_in(budget_bytes: int) -> graphopt.TrainStep:
        model = build()
        options: dict[str, Any] = {"offload_optimizer": tmp_path, "cost_model": cost_model}
        return graphopt.train_step(model, mean_square, adamw(model), budget_bytes, update_in_backward=True, **options)

    with pytest.raises(graphopt.BudgetError) as error:
        step_in(1).plan_for((X, Y), {})
    step = step_in(error.value.minimum_bytes)
    for _ in range(2):
        step(X, Y)
    assert max(each.measured_bytes for each in step.history) <= error.value.minimum_bytes


def test_an_interrupt_waits_for_the_end_of_the_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, other = build(), build()
    optimizer = adamw(model)
    step = graphopt.train_step(model, mean_square, optimizer, offload_optimizer=tmp_path)
    usual = graphopt.train_step(other, mean_square, adamw(other))
    for each in (step, usual):
        each(X, Y)
    real, calls = streaming.adam_, []

    def interrupts(*arguments: Any, **options: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        real(*arguments, **options)

    monkeypatch.setattr(streaming, "adam_", interrupts)
    with pytest.raises(KeyboardInterrupt):
        step(X, Y)
    usual(X, Y)
    monkeypatch.undo()
    assert len(calls) > 2
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert torch.equal(step(X, Y).loss, usual(X, Y).loss)

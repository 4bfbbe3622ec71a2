"""What is changed after a step was built: trained on as a loop written by hand trains it, or refused in words."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F
from torch.optim import lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook

import graphopt
from graphopt.step.optimizer.optimizer_step import kind_of_step
from graphopt.step.optimizer.optimizer_view import OptimizerView
from tests.support.loops import EagerLoop, Pair
from tests.support.models import seeded

Change = Callable[[nn.Sequential, optim.Optimizer], object]
WAYS: dict[str, dict[str, Any]] = {"whole": {}, "cut": {"accumulate": 2}, "in backward": {"update_in_backward": True}}


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(self.inner(x), y)


def momentum(parameters: Any) -> optim.Optimizer:
    return optim.SGD(parameters, 0.1, momentum=0.9, fused=True)


def pair_of(make: Callable[..., optim.Optimizer] = momentum, **options: Any) -> Pair:
    build = seeded(Layers)
    model, twin = build(), build()
    step = graphopt.train_step(model, None, make(model.parameters()), cost_model="roofline", **options)
    of_loop = {key: value for key, value in options.items() if key != "update_in_backward"}
    return Pair(step, EagerLoop(twin, make(twin.parameters()), **of_loop))


def run(pair: Pair, steps: int, dtype: torch.dtype = torch.float32) -> None:
    generator = torch.Generator().manual_seed(3)
    drawn = [torch.randn(2, 4, 8, generator=generator).to(dtype).unbind() for _ in range(steps)]
    pair.run([(batch, {}) for batch in drawn])


def change(pair: Pair, how: Change) -> None:
    for side in (pair.step, pair.loop):
        how(side.model.inner, side.optimizer)  # type: ignore[arg-type]


def layer() -> nn.Linear:
    return seeded(nn.Linear, 8, 8)()


def weight_of(model: nn.Sequential) -> nn.Parameter:
    return model[0].weight  # type: ignore[return-value]


def half_after_step(model: nn.Sequential, optimizer: optim.Optimizer) -> None:
    own = optimizer.step

    def step() -> None:
        own()
        with torch.no_grad():
            weight_of(model).mul_(0.5)

    optimizer.step = step  # type: ignore[method-assign]


def append(model: nn.Sequential, optimizer: optim.Optimizer) -> None:
    model.append(layer())
    optimizer.add_param_group({"params": list(model[-1].parameters()), "lr": 0.05})


def replace_in_both(model: nn.Sequential, optimizer: optim.Optimizer) -> None:
    old, model[0].weight = weight_of(model), nn.Parameter(torch.full((8, 8), 0.1))
    held = optimizer.param_groups[0]["params"]
    del held[next(i for i, parameter in enumerate(held) if parameter is old)]
    optimizer.state.pop(old)
    # a group of its own: torch's fused SGD does not take one with and without momentum buffers
    optimizer.add_param_group({"params": [model[0].weight]})


def swap(model: nn.Sequential, _: optim.Optimizer) -> None:
    model[0], model[2] = model[2], model[0]


#: Heeded by whatever updates the parameters.
HEEDED: dict[str, Change] = {
    "a layer that is trained": append,
    "a layer that is not trained": lambda model, _: model.append(layer()),
    "a parameter that the optimizer takes too": replace_in_both,
    "layers that change places": swap,
    "frozen": lambda model, _: weight_of(model).requires_grad_(False),
    "no longer held": lambda _, optimizer: optimizer.param_groups[0]["params"].pop(0),
    "state that is loaded": lambda _, optimizer: optimizer.load_state_dict(deepcopy(optimizer.state_dict())),
    "no momentum": lambda _, optimizer: optimizer.param_groups[0].update(momentum=0.0),
    "nesterov": lambda _, optimizer: optimizer.param_groups[0].update(nesterov=True),
    "a scheduler": lambda _, optimizer: lr_scheduler.StepLR(optimizer, 1),
    "a forward hook": lambda model, _: model[0].register_forward_hook(lambda _m, _i, out: out * 2),
}
#: Heeded by letting the optimizer step itself.
OF_THE_STEP: dict[str, Change] = {
    "a step that does nothing": lambda _, optimizer: setattr(optimizer, "step", lambda: None),
    "a step that does more": half_after_step,
    "a hook before": lambda _, optimizer: optimizer.register_step_pre_hook(
        lambda held, *_: [p.grad.mul_(3) for p in held.param_groups[0]["params"]] and None
    ),
}


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("how", HEEDED.values(), ids=HEEDED)
def test_what_is_changed_is_heeded(how: Change, options: dict[str, Any]) -> None:
    pair = pair_of(**options)
    run(pair, 2)
    change(pair, how)
    run(pair, 3)
    assert pair.differences() == {}


@pytest.mark.parametrize("how", OF_THE_STEP.values(), ids=OF_THE_STEP)
def test_a_step_that_was_replaced_or_hooked_is_taken(how: Change) -> None:
    pair = pair_of(accumulate=2)
    run(pair, 2)
    change(pair, how)
    run(pair, 3)
    assert pair.differences() == {}


@pytest.mark.parametrize("how", OF_THE_STEP.values(), ids=OF_THE_STEP)
def test_a_step_that_wants_all_gradients_ends_updates_in_the_backward(how: Change) -> None:
    pair = pair_of(update_in_backward=True)
    run(pair, 2)
    change(pair, how)
    with pytest.raises(graphopt.UsageError, match="does not go with SGD, whose step"):
        run(pair, 1)


@contextmanager
def doubling_every_update() -> Iterator[None]:
    def hook(optimizer: optim.Optimizer, *_: Any) -> None:
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.data.mul_(2)

    handle = register_optimizer_step_post_hook(hook)
    yield
    handle.remove()


def test_hooks_of_all_optimizers_are_called() -> None:
    pair = pair_of()
    run(pair, 2)
    with doubling_every_update():
        run(pair, 2)
    run(pair, 1)
    assert pair.differences() == {}


def test_only_torchs_own_step_is_fused() -> None:
    """What changed, if a version of torch wraps `step` in a way that is not known: all would run unfused."""
    parameters = [nn.Parameter(torch.zeros(2))]
    optimizer = optim.AdamW(parameters)
    assert kind_of_step(optimizer) == "adam"
    lr_scheduler.StepLR(optimizer, 1), lr_scheduler.ExponentialLR(optimizer, 0.9)
    assert "step" in vars(optimizer) and kind_of_step(optimizer) == "adam"
    model = nn.Linear(2, 2)
    graphopt.optimize(model, "1GiB", example_inputs=torch.zeros(1, 2))  # it heeds every optimizer's step
    assert kind_of_step(optimizer) == "adam"
    optimizer.step = torch.no_grad()(optimizer.step)  # type: ignore[method-assign]
    assert kind_of_step(optimizer) == "step"
    replaced = optim.AdamW(parameters)
    replaced.step = lambda *_: None  # type: ignore[method-assign]
    assert kind_of_step(replaced) == "step"


def assign(model: nn.Sequential, _: optim.Optimizer) -> None:
    model.load_state_dict({name: 2 * value for name, value in model.state_dict().items()}, assign=True)


def replace_and_add(model: nn.Sequential, optimizer: optim.Optimizer) -> None:
    model[0].weight = nn.Parameter(torch.zeros(8, 8))
    optimizer.add_param_group({"params": [model[0].weight]})


REFUSED: dict[str, tuple[Change, str]] = {
    "a hook": (lambda model, _: weight_of(model).register_hook(lambda g: g * 5), r"inner\.0\.weight has a hook"),
    "a hook behind": (
        lambda model, _: weight_of(model).register_post_accumulate_grad_hook(lambda _: None),
        r"inner\.0\.weight has a hook on its gradient.*remove it",
    ),
    "a layer that was replaced": (
        lambda model, _: model.__setitem__(0, layer()),
        r"inner\.0\.weight was replaced after train_step\(\) was built.*new optimizer",
    ),
    "parameters that were assigned": (assign, r"was replaced .* by load_state_dict\(\.\.\., assign=True\)"),
    "a parameter that was replaced and added": (replace_and_add, r"inner\.0\.weight was replaced"),
    "a layer that is gone": (lambda model, _: model.__delitem__(2), r"inner\.2\.weight was taken out of the model"),
    "a parameter of something else": (
        lambda _, optimizer: optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(3))]}),
        r"shape \(3,\) that is not the model's",
    ),
    "state of another dtype": (lambda model, _: model.double(), r"became torch\.float64 .*load_state_dict"),
}


@pytest.mark.parametrize(("how", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_trained_as_a_loop_would_is_refused(how: Change, said: str) -> None:
    pair = pair_of()
    run(pair, 2)
    change(pair, how)
    x = torch.zeros(4, 8, dtype=weight_of(pair.step.model.inner).dtype)  # type: ignore[arg-type]
    before = [parameter.detach().clone() for parameter in pair.step.model.parameters()]
    for _ in range(2):  # and not only once
        with pytest.raises(graphopt.UsageError, match=said):
            pair.step(x, x)
    assert all(map(torch.equal, before, pair.step.model.parameters()))


def test_a_full_backward_hook_is_refused_too() -> None:
    pair = pair_of()
    run(pair, 2)
    pair.step.model.inner[0].register_full_backward_hook(lambda *_: None)  # type: ignore[index]
    with pytest.raises(graphopt.CaptureError, match="full backward hook"):
        run(pair, 1)


def test_what_was_refused_and_mended_goes_on() -> None:
    pair = pair_of()
    run(pair, 2)
    handle = weight_of(pair.step.model.inner).register_hook(lambda g: g)  # type: ignore[arg-type]
    with pytest.raises(graphopt.UsageError, match="has a hook"):
        pair.step(torch.zeros(4, 8), torch.zeros(4, 8))
    handle.remove()
    run(pair, 2)
    change(pair, lambda model, optimizer: (model.double(), optimizer.load_state_dict(optimizer.state_dict())))
    run(pair, 2, torch.float64)
    assert pair.differences() == {}


def test_masters_are_those_of_the_parameters_that_were() -> None:
    for how, said in (
        (lambda model, _: assign(model, _), "was replaced"),
        (
            lambda model, optimizer: (
                model.append(layer().bfloat16()),
                optimizer.add_param_group({"params": list(model[-1].parameters())}),
            ),
            r"inner\.3\.weight is torch\.bfloat16 and has no float32 master",
        ),
    ):
        model = seeded(Layers)().bfloat16()
        step = graphopt.train_step(model, None, momentum(model.parameters()), masters=True)
        x = torch.ones(4, 8, dtype=torch.bfloat16)
        step(x, x)
        how(model.inner, step.optimizer)
        with pytest.raises(graphopt.UsageError, match=said):
            step(x, x)


def test_memory_counts_what_was_added() -> None:
    pair = pair_of()
    run(pair, 2)
    before = pair.step.plan.resident_bytes["parameters"]
    change(pair, append)
    run(pair, 1)
    assert pair.step.plan.resident_bytes["parameters"] == before + 4 * (64 + 8)


def test_looking_for_changes_takes_microseconds() -> None:
    model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(50)])
    view = OptimizerView(optim.AdamW(model.parameters()), model, masters=False)

    def seconds() -> float:
        start = time.perf_counter()
        assert not view.heeds_changes(may_grow=True)
        return time.perf_counter() - start

    assert min(seconds() for _ in range(20)) < 1e-3  # 0.1 ms, on a machine with other work

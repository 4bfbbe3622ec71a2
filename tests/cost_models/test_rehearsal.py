from __future__ import annotations

import pytest
import torch
from torch import nn

from graphopt.base.errors import UsageError
from graphopt.cost_models.rehearsal import Rehearsed, peak_bytes_of, rehearse_step
from graphopt.device import measure

SHAPES = ((100, 50), (64,), (30, 100), (100, 50))
OPTIMIZERS = (
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "ASGD",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
)
#: Numbers of steps and the like, which are not counted.
LOOSE_BYTES = 128


def held(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [t for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)]


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_takes_what_its_rehearsal_took(name: str, foreach: bool) -> None:
    parameters = [nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    optimizer = getattr(torch.optim, name)(parameters, lr=0.1, foreach=foreach)
    rehearsed = rehearse_step(optimizer)
    before = [parameter.detach().clone() for parameter in parameters]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)

    first = measure.peak_bytes(optimizer.step, (), "cpu")
    assert rehearsed.state_bytes == sum(t.nbytes for t in held(optimizer))
    assert first <= rehearsed.state_bytes + rehearsed.workspace_bytes + LOOSE_BYTES
    again = rehearse_step(optimizer)
    assert again.state_bytes == rehearsed.state_bytes
    assert measure.peak_bytes(optimizer.step, (), "cpu") == pytest.approx(again.workspace_bytes, abs=LOOSE_BYTES)
    assert not any(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))


def test_a_rehearsal_changes_nothing() -> None:
    parameter = nn.Parameter(torch.ones(5))
    optimizer = torch.optim.NAdam([parameter])
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    calls = []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    assert rehearse_step(optimizer).state_bytes == 2 * 20 + 2 * 4
    assert not optimizer.state and parameter.grad is None and torch.equal(parameter, torch.ones(5)) and not calls
    assert optimizer.param_groups[0]["params"][0] is parameter and scheduler.last_epoch == 0
    parameter.grad = torch.ones(5)
    optimizer.step()
    step = optimizer.state[parameter]["step"].clone()
    rehearse_step(optimizer)
    assert optimizer.state[parameter]["step"] == step == 1


def test_float32_masters_are_rehearsed_in_place_of_half_parameters() -> None:
    parameters = [nn.Parameter(torch.ones(10, dtype=torch.bfloat16)), nn.Parameter(torch.ones(3))]
    optimizer = torch.optim.RMSprop(parameters)
    assert rehearse_step(optimizer).state_bytes == 20 + 12 + 8
    assert rehearse_step(optimizer, masters=True).state_bytes == 40 + 12 + 8


def test_frozen_parameters_have_no_state() -> None:
    parameters = [nn.Parameter(torch.ones(10), requires_grad=False), nn.Parameter(torch.ones(3))]
    assert rehearse_step(torch.optim.RMSprop(parameters)).state_bytes == 12 + 4


def test_an_optimizer_that_wants_more_than_its_gradients_is_refused() -> None:
    with pytest.raises(UsageError, match=r"LBFGS cannot be known before its first step"):
        rehearse_step(torch.optim.LBFGS([nn.Parameter(torch.ones(3))]))


class Ridiculous(torch.optim.Optimizer):
    """Keeps its state in a list, reads numbers, and makes temporaries of twice a parameter."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        super().__init__(parameters, {})

    def step(self, closure: object = None) -> None:
        del closure
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                state.setdefault("history", []).append(parameter.grad.clone())
                if parameter.grad.norm().item() > 0:
                    parameter.data.sub_(torch.cat([parameter.grad, parameter.grad])[: len(parameter)])


def test_a_users_own_optimizer() -> None:
    optimizer = Ridiculous([nn.Parameter(torch.ones(1000))])
    assert rehearse_step(optimizer) == Rehearsed(4000, 8000)


def test_storages_that_are_gone_do_not_count() -> None:
    known = torch.empty(100, device="meta")

    def run() -> None:
        for _ in range(3):
            half = known + 1
            half.mul_(2)
            known.view(10, 10).t().add_(1)

    # the name `half` still holds one while the next is made
    assert peak_bytes_of(run, [known], torch.device("cpu")) == 800

"""Parameters updated where their gradients appear: eager's values, gradients that die at once."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

import graphopt
from graphopt import kernels
from graphopt.base.errors import PlanMismatchError
from graphopt.emit.late_writers import check_settled, settle
from tests.support.small_models import TwoLayers
from tests.support.zoo import ZOO

Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=1e-3, amsgrad=True, fused=True),
    "momentum": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, dampening=0.1, fused=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2, fused=True),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_equals_eager(optimizer: str) -> None:
    torch.manual_seed(0)
    ours = nn.Sequential(
        nn.Linear(8, 16), nn.GELU(), nn.BatchNorm1d(16), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2)
    )
    eager = copy.deepcopy(ours)
    make = OPTIMIZERS[optimizer]
    mine, theirs = make(list(ours.parameters())), make(list(eager.parameters()))
    step = graphopt.train_step(ours, nn.functional.cross_entropy, mine, update_in_backward=True)
    for seed in range(4):
        torch.manual_seed(seed)
        x, y = torch.randn(12, 8), torch.randint(0, 2, (12,))
        loss = nn.functional.cross_entropy(eager(x), y)
        loss.backward()
        theirs.step()
        theirs.zero_grad()
        with kernels.use("stock"):
            assert torch.equal(step(x, y).loss, loss)
    for name, value in ours.state_dict().items():
        assert torch.equal(value, eager.state_dict()[name]), name
    state, expected = mine.state_dict()["state"], theirs.state_dict()["state"]
    assert state.keys() == expected.keys()
    for number, tensors in state.items():
        for key, value in tensors.items():
            assert value is expected[number][key] or torch.equal(value, expected[number][key]), key


@pytest.mark.fast(1)
@pytest.mark.parametrize("model", ["gpt2", "unet", "shared_and_frozen"])
def test_equals_eager_where_the_budget_makes_it_read_parameters_again(model: str) -> None:
    ours, eager = ZOO[model](), ZOO[model]()
    make = OPTIMIZERS["adamw"]
    mine, theirs = make(list(ours.model.parameters())), make(list(eager.model.parameters()))

    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = ours.model

        def forward(self, *args: object, **kwargs: object) -> torch.Tensor:
            return ours.loss(self.model(*args, **kwargs))

    module = Loss()
    free = graphopt.train_step(module, None, mine, update_in_backward=True)
    free.plan_for(ours.args, ours.kwargs)
    budget = (free.plan.minimum_bytes * 3 + free.plan.peak_bytes) // 4
    step = graphopt.train_step(module, None, mine, budget, update_in_backward=True)
    for seed in range(2):
        torch.manual_seed(seed)
        with kernels.use("stock"):
            step(*ours.args, **ours.kwargs)
        torch.manual_seed(seed)
        eager.loss(eager.model(*eager.args, **eager.kwargs)).backward()
        theirs.step()
        theirs.zero_grad()
    assert step.plan.overhead > 0
    for name, value in ours.model.state_dict().items():
        assert torch.equal(value, eager.model.state_dict()[name]), name


def test_gradients_never_all_live() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(256, 256) for _ in range(16)])
    x, y = torch.randn(4, 256), torch.randn(4, 256)
    peaks = {}
    for in_backward in (False, True):
        step = graphopt.train_step(
            model, nn.functional.mse_loss, OPTIMIZERS["sgd"](list(model.parameters())), update_in_backward=in_backward
        )
        step.plan_for((x, y), {})
        peaks[in_backward] = step.plan.peak_bytes - sum(step.plan.resident_bytes.values())
    gradients = sum(p.nbytes for p in model.parameters())
    assert peaks[False] > gradients
    assert peaks[True] < gradients / 4


def test_a_late_writer_follows_what_is_computed_again() -> None:
    model = TwoLayers()
    step = graphopt.train_step(model, None, OPTIMIZERS["sgd"](list(model.parameters())), update_in_backward=True)
    step.plan_for((torch.randn(2, 3),), {})
    captured = step._memory.planned[0].planned.captured
    graph, schedule = captured.step, list(captured.captured_schedule)
    assert settle(graph, schedule) == tuple(schedule)
    writer = graph.late_writers[0]
    (written,) = graph.ops[writer].writes
    reader = next(i for i, op in enumerate(graph.ops) if written in op.inputs and not op.backward)
    again = [*schedule[: schedule.index(writer) + 1], reader, *schedule[schedule.index(writer) + 1 :]]
    with pytest.raises(PlanMismatchError, match="after"):
        check_settled(graph, again)
    settled = settle(graph, again)
    check_settled(graph, settled)
    assert sorted(settled) == sorted(again)
    assert settled.index(writer) == again.index(writer) + 1


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"accumulate": 2}, "accumulate"),
        ({"clip": graphopt.ClipNorm(1.0)}, "ClipNorm"),
        ({"loss_scale": graphopt.ConstantLossScale(2.0)}, "loss scale"),
    ],
)
def test_what_needs_all_gradients_first_is_refused(options: dict[str, object], word: str) -> None:
    model = TwoLayers()
    optimizer = OPTIMIZERS["sgd"](list(model.parameters()))
    with pytest.raises(graphopt.UsageError, match=word):
        graphopt.train_step(model, None, optimizer, update_in_backward=True, **options)  # type: ignore[arg-type]

"""Ranks that would train different things are told so, all of them, before anything is trained."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn, optim
from torch.nn import functional as F

import graphopt
from graphopt.base.errors import GraphoptError, PlanMismatchError, RankError, UsageError
from graphopt.step.ranks.settings import spelled_option
from tests.support.ranks import run_ranks


class Net(nn.Module):
    """Two layers, a dropout, and an activation of one's choice; `width` and `more` change what there is to train."""

    def __init__(
        self, activation: Callable[[Tensor], Tensor] = torch.tanh, chance: float = 0.0, width: int = 40, more: int = 0
    ) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(40, width), nn.Linear(width, 40)
        self.more = nn.ModuleList([nn.Linear(40, 40) for _ in range(more)])
        self.activation, self.chance = activation, chance

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(F.dropout(self.activation(self.first(x)), self.chance, self.training))
        for layer in self.more:
            x = layer(x)
        return x


def sgd(parameters: Any, **options: Any) -> optim.Optimizer:
    return optim.SGD(parameters, **{"lr": 0.1, **options})


@dataclass(frozen=True)
class Way:
    """How a rank trains."""

    optimizer: Callable[[nn.Module], optim.Optimizer] = lambda net: sgd(net.parameters())
    loss: Callable[..., Any] = F.mse_loss
    net: Callable[[], nn.Module] = Net
    options: dict[str, Any] = field(default_factory=dict)

    def step(self) -> graphopt.TrainStep:
        torch.manual_seed(dist.get_rank())
        net = self.net()
        return graphopt.train_step(net, self.loss, self.optimizer(net), cost_model="roofline", **self.options)


def options(**given: Any) -> Way:
    return Way(options=given)


def groups(net: nn.Module) -> optim.Optimizer:
    return sgd([{"params": net.first.parameters()}, {"params": net.second.parameters(), "lr": 0.2}])  # type: ignore[union-attr]


def rows(x: Tensor, _: Tensor) -> Tensor:
    return x.new_full((), float(len(x)))


#: What two ranks do, and what both must read.
DIFFERENT: dict[str, tuple[Way, Way, type[GraphoptError], str]] = {
    "learning rate": (
        *(Way(), Way(lambda net: sgd(net.parameters(), lr=0.01)), UsageError),
        "lr of group 0 is 0.1 on rank 0 and 0.01 on rank 1",
    ),
    "weight decay of one group": (
        *(Way(groups), Way(lambda net: _decayed(groups(net))), UsageError),
        "weight_decay of group 1 is 0 on rank 0 and 0.1 on rank 1",
    ),
    "optimizer": (
        *(Way(), Way(lambda net: optim.AdamW(net.parameters(), 0.1)), UsageError),
        "the optimizer is torch.optim.sgd.SGD on rank 0 and torch.optim.adamw.AdamW on rank 1",
    ),
    "betas": (
        Way(lambda net: optim.Adam(net.parameters(), 0.1)),
        *(Way(lambda net: optim.Adam(net.parameters(), 0.1, betas=(0.8, 0.999))), UsageError),
        "betas of group 0 is (0.9, 0.999) on rank 0 and (0.8, 0.999) on rank 1",
    ),
    "groups": (
        *(Way(), Way(groups), UsageError),
        "the number of parameter groups is 1 on rank 0 and 2 on rank 1",
    ),
    "what is in a group": (
        *(Way(), Way(lambda net: sgd(net.first.parameters())), UsageError),  # type: ignore[union-attr, operator]
        "the parameters of group 0 is second.weight [40, 40] torch.float32 on rank 0 and no more on rank 1",
    ),
    "masters": (
        Way(net=lambda: Net().bfloat16()),
        *(Way(net=lambda: Net().bfloat16(), options={"masters": True}), UsageError),
        "first.weight [40, 40] torch.float32 (a master) on rank 1",
    ),
    "clip": (
        *(options(), options(clip=graphopt.ClipNorm(1.0)), UsageError),
        "clip is None on rank 0 and ClipNorm(max_norm=1.0",
    ),
    "limit": (
        *(options(clip=graphopt.ClipNorm(2.0)), options(clip=graphopt.ClipNorm(1.0)), UsageError),
        "clip is ClipNorm(max_norm=2.0",
    ),
    "loss scale": (
        *(options(loss_scale=graphopt.DynamicLossScale(2.0**8)), options(), UsageError),
        "loss_scale is DynamicLossScale(initial=256.0",
    ),
    "compression": (
        *(options(), options(compress=graphopt.EightBit()), UsageError),
        "compress is None on rank 0 and EightBit() on rank 1",
    ),
    "how much": (
        *(options(compress=graphopt.TopK(0.1)), options(compress=graphopt.TopK(0.2)), UsageError),
        "compress is TopK(ratio=0.1) on rank 0 and TopK(ratio=0.2) on rank 1",
    ),
    "who chooses": (
        *(options(compress="auto"), options(), UsageError),
        "on rank 0 and None on rank 1",
    ),
    "weights": (
        *(options(), options(weights=rows), UsageError),
        "weights is None on rank 0 and tests.step.ranks.test_alike.rows on rank 1",
    ),
    "who divides": (
        *(options(accumulate="auto"), options(accumulate=2), UsageError),
        "accumulate is 'auto' on rank 0 and a number on rank 1",
    ),
    "autocast": (
        *(options(), options(autocast=torch.bfloat16), UsageError),
        "autocast is None on rank 0 and torch.bfloat16 on rank 1",
    ),
    "activation": (
        *(Way(), Way(net=lambda: Net(torch.relu)), PlanMismatchError),
        "rank 0 has aten.tanh.default() at ",
    ),
    "a number of an activation": (
        Way(net=lambda: Net(lambda x: F.leaky_relu(x, 0.1))),
        *(Way(net=lambda: Net(lambda x: F.leaky_relu(x, 0.2))), PlanMismatchError),
        "aten.leaky_relu.default(0.2)",
    ),
    "dropout": (
        *(Way(net=lambda: Net(chance=0.1)), Way(net=lambda: Net(chance=0.2)), PlanMismatchError),
        "the ranks would train different models",
    ),
    "mode": (
        *(Way(net=lambda: Net(chance=0.1)), Way(net=lambda: Net(chance=0.1).eval()), PlanMismatchError),
        "the ranks would train different models",
    ),
    "loss": (
        *(Way(), Way(loss=F.l1_loss), PlanMismatchError),
        "rank 0 has aten.mse_loss.default",
    ),
    "shapes": (
        *(Way(), Way(net=lambda: Net(width=41)), UsageError),
        "the parameter first.weight is [40, 40] torch.float32 on rank 0 and [41, 40] torch.float32 on rank 1",
    ),
    "layers": (
        *(Way(net=lambda: Net(more=1)), Way(), UsageError),
        "the parameter more.0.weight is [40, 40] torch.float32 on rank 0 and not there on rank 1",
    ),
    "an option that one rank refuses": (
        options(compress=graphopt.DGC(0.1)),
        *(Way(lambda net: sgd(net.parameters(), momentum=0.9), options={"compress": graphopt.DGC(0.1)}), UsageError),
        "give 0.9 to DGC(momentum=...) and 0 to the optimizer",
    ),
}


def _decayed(optimizer: optim.Optimizer) -> optim.Optimizer:
    optimizer.param_groups[1]["weight_decay"] = 0.1
    return optimizer


def batch(count: int = 4) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 40), torch.randn(count, 40)


def numbers(net: nn.Module) -> list[bytes]:
    return [tensor.detach().view(torch.uint8).numpy().tobytes() for tensor in net.parameters()]


def refused(name: str) -> tuple[type[BaseException], str]:
    """What this rank reads; nothing may have been trained then."""
    way, step = DIFFERENT[name][dist.get_rank()], None
    try:
        step = way.step()
        before = numbers(step.model)
        step(*batch())
    except GraphoptError as error:
        if step is not None:
            assert numbers(step.model) == before
        return type(error), str(error)
    raise AssertionError(f"nobody noticed another {name}")


def all_refused() -> dict[str, tuple[type[BaseException], str]]:
    found = {name: refused(name) for name in DIFFERENT}
    step = Way().step()  # and they still can train together
    step(*batch())
    return found


def test_whatever_differs_is_named_on_all_ranks() -> None:
    ranks = run_ranks(2, all_refused)
    for name, (_, _, kind, text) in DIFFERENT.items():
        for found, message in (rank[name] for rank in ranks):
            assert found is kind and text in message, (name, message)


def changing() -> list[str]:
    """What is told when one rank's settings change in the middle; training goes on when they are alike again."""
    rank, told = dist.get_rank(), []
    step = Way(options={"loss_scale": graphopt.DynamicLossScale(2.0**8)}).step()
    step(*batch())
    (group,) = step.optimizer.param_groups

    def refused_until(put_back: Callable[[], object]) -> None:
        before = numbers(step.model)
        with pytest.raises(UsageError) as error:
            step(*batch())
        assert numbers(step.model) == before
        told.append(str(error.value))
        put_back()
        step(*batch())

    group["lr"] = 0.1 + 0.1 * rank
    refused_until(lambda: group.update(lr=0.05))
    group["momentum"] = 0.9 * rank
    refused_until(lambda: group.update(momentum=0.9))
    state = step.state_dict()
    if rank == 1:
        step.load_state_dict({**state, "loss_scale": {**state["loss_scale"], "scale": 64.0}})
    refused_until(lambda: step.load_state_dict(state))
    if rank == 1:
        saved = {**state, "compression": {**state["compression"], "steps": 77}}
        step.load_state_dict(saved)
    else:
        step.load_state_dict(state)
    refused_until(lambda: step.load_state_dict(state))
    with graphopt.kernels.use("stock" if rank else "auto"), pytest.raises(UsageError) as error:
        step(*batch())
    return [*told, str(error.value)]


def test_what_changes_on_one_rank_is_named_and_may_be_put_right() -> None:
    first, second = run_ranks(2, changing)
    assert first == second
    expected = ("lr of group 0 is 0.1 on", "momentum of group 0 is", "'scale': 64.0", "77 on rank 1", "kernels is auto")
    for text, message in zip(expected, first, strict=True):
        assert text in message


def scheduled() -> list[list[bytes]]:
    """Schedules, and what is changed by hand on all ranks, are no difference."""
    found = []
    for given in (0.1, torch.tensor(0.1)):
        net = Net()
        optimizer = optim.SGD(net.parameters(), given, momentum=0.9)
        schedule = optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)
        step = graphopt.train_step(net, F.mse_loss, optimizer, cost_model="roofline", lr_scheduler=schedule)
        for _ in range(3):
            step(*batch())
        optimizer.param_groups[0]["momentum"] = 0.5
        step(*batch(5 + 3 * dist.get_rank()))
        found.append(numbers(net))
    return found


def test_what_changes_on_all_ranks_alike_is_no_difference() -> None:
    first, second = run_ranks(2, scheduled)
    assert first == second


def uneven() -> list[list[str]]:
    """Warnings of trainings with uneven batches: of one model, and of two."""
    rank, found = dist.get_rank(), []
    for activation in (torch.tanh, (torch.tanh, torch.relu)[rank]):
        step = Way(net=lambda: Net(activation)).step()  # noqa: B023
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for count in (3, 1, 5):
                step(*batch(count + rank))
        found.append([str(warning.message) for warning in caught if "graphopt" in str(warning.message)])
    return found


def test_uneven_batches_of_different_models_are_warned_of_once() -> None:
    for same, different in run_ranks(2, uneven):
        assert same == []
        assert len(different) == 1 and "aten.tanh" in different[0] and "aten.relu" in different[0]


class Contrasting(nn.Module):
    """Which rows belong together depends on the rank, as in losses over all ranks' batches."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(40, 80)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        del y
        return F.cross_entropy(self.first(x), torch.arange(len(x)) + len(x) * dist.get_rank())


def contrasting() -> bool:
    step = Way(loss=None, net=Contrasting).step()  # type: ignore[arg-type]
    return bool(step(*batch()).loss.isfinite())


def test_a_rank_may_know_its_number() -> None:
    assert run_ranks(2, contrasting) == [True, True]


def waiting(who_comes: int, what: str) -> str:
    """What the one rank that calls reads."""
    group = dist.new_group(timeout=timedelta(seconds=2))
    if dist.get_rank() != who_comes:
        dist.monitored_barrier(timeout=timedelta(seconds=30))  # until the other has its error
        return ""
    net = Net()
    with pytest.raises(RankError) as error:
        examples: dict[str, Any] = {"example_inputs": batch()} if what == "planned" else {}
        graphopt.train_step(net, F.mse_loss, sgd(net.parameters()), group=group, **examples)(*batch())
    dist.monitored_barrier(timeout=timedelta(seconds=30))
    return str(error.value)


@pytest.mark.fast(2)
@pytest.mark.parametrize("who_comes", [0, 1])
@pytest.mark.parametrize("what", ["bare", "planned"])
def test_a_rank_that_does_not_come_is_a_rank_error(who_comes: int, what: str) -> None:
    message = run_ranks(2, waiting, who_comes, what)[who_comes]
    assert f"rank {who_comes}" in message and "the other 1" in message


def test_options_are_spelled_alike_in_every_process() -> None:
    class Odd:
        pass

    given = [True, 0.1, (1, [2.5, None]), {"a": torch.tensor(0.5)}, "x", torch.zeros(3), rows, Odd(), torch.float32]
    assert [spelled_option(value) for value in given] == [
        "True",
        "0.1",
        "(1, (2.5, None))",
        "{a: 0.5}",
        "'x'",
        "[3] torch.float32",
        f"{__name__}.rows",
        f"{__name__}.test_options_are_spelled_alike_in_every_process.<locals>.Odd",
        "torch.float32",
    ]

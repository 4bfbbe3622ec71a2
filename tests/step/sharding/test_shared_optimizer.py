"""An optimizer whose state is shared out trains with the bits of one that is whole on every rank, in every way."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn, optim

import graphopt
from graphopt.compression.choose import ChosenMethods
from graphopt.step.ranks import exchange
from tests.support.ranks import run_ranks
from tests.support.sharded import CLASSES, language_loss, part, seeded, ulps, whole_parameters

Make = Callable[[list[nn.Parameter]], optim.Optimizer]

STEPS, OVERFLOWS = 4, 2


def adamw(parameters: list[nn.Parameter]) -> optim.Optimizer:
    return optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)


def amsgrad(parameters: list[nn.Parameter]) -> optim.Optimizer:
    return optim.Adam([{"params": parameters[:3]}, {"params": parameters[3:], "lr": 1e-3}], amsgrad=True)


def sgd(parameters: list[nn.Parameter]) -> optim.Optimizer:
    return optim.SGD(parameters, lr=0.1)


def momentum(parameters: list[nn.Parameter]) -> optim.Optimizer:
    return optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True)


def adagrad(parameters: list[nn.Parameter]) -> optim.Optimizer:
    return optim.Adagrad(parameters, lr=0.01)


def rmsprop(parameters: list[nn.Parameter]) -> optim.Optimizer:
    return optim.RMSprop(parameters, lr=1e-3, momentum=0.5, foreach=True)


SCALE = graphopt.DynamicLossScale(2.0**10, interval=2)
AUTO = graphopt.Auto((graphopt.EightBit(),))
CASES: dict[str, tuple[Make, dict[str, Any]]] = {
    "one micro-batch": (adamw, {}),
    "four": (momentum, {"accumulate": 4}),
    "the optimizer's own step": (adagrad, {"accumulate": 4, "clip": graphopt.ClipNorm(0.05)}),
    "its own step, scaled": (rmsprop, {"loss_scale": SCALE, "clip": graphopt.ClipValue(1e-3)}),
    "norm": (adamw, {"clip": graphopt.ClipNorm(0.05), "accumulate": 4}),
    "groups": (amsgrad, {"clip": graphopt.ClipNorm(0.05, per_group=True)}),
    "largest": (sgd, {"clip": graphopt.ClipNorm(0.01, math.inf)}),
    "value": (momentum, {"clip": graphopt.ClipValue(1e-3)}),
    "tokens": (adamw, {"weights": "tokens", "accumulate": 4}),
    "everything": (
        adamw,
        {"weights": "tokens", "accumulate": 4, "clip": graphopt.ClipNorm(0.05), "loss_scale": SCALE},
    ),
    "bfloat16": (adamw, {"autocast": torch.bfloat16}),
    "in a file": (adamw, {"offload_optimizer": "file"}),
    "8-bit": (adamw, {"compress": graphopt.EightBit(), "loss_scale": SCALE}),
    "8-bit, four": (momentum, {"compress": graphopt.EightBit(), "accumulate": 4, "clip": graphopt.ClipNorm(0.05)}),
    "top-k": (momentum, {"compress": graphopt.TopK(0.05), "accumulate": 4}),
    "low-rank": (adamw, {"compress": graphopt.PowerSGD(2), "clip": graphopt.ClipNorm(0.05)}),
    "DGC": (sgd, {"compress": graphopt.DGC(0.05, max_norm=0.1)}),
    "drawn": (adagrad, {"compress": graphopt.QSGD(4)}),
    "auto": (adamw, {"compress": AUTO, "loss_scale": SCALE}),
}


def choose_all(_ranks: object, auto: graphopt.Auto, buckets: list[Any], _seconds: float) -> ChosenMethods:
    """What "auto" chooses where every bucket is worth it: measured, one run would not choose as another."""
    return ChosenMethods((auto.candidates[0],) * len(buckets), ("as a test says",))


def trained(shard: object, make: Make, model: nn.Module, options: dict[str, Any], uneven: int = 0) -> dict[str, Any]:
    """What comes of some steps: results, parameters, the whole optimizer's state, and what compression keeps."""
    rank, results = dist.get_rank(), []
    optimizer = make(list(model.parameters()))
    whole: Any = shard
    step = graphopt.train_step(model, language_loss, optimizer, shard=whole, cost_model="roofline", **options)
    shift = model.shift
    assert isinstance(shift, Tensor)
    for i in range(STEPS):
        overflows = "loss_scale" in options and i == OVERFLOWS and rank == 1
        shift.fill_(math.inf if overflows else 0.1)
        out = step(*part(i, rank, 4 + uneven * rank))
        norm = None if out.grad_norm is None else out.grad_norm.tolist()
        results.append((repr(float(out.loss)), repr(norm), out.skipped, float(out.loss_scale)))
    kept = step.state_dict()["compression"]["state"]
    found = {f"parameter {name}": value for name, value in whole_parameters(step).items()}
    found |= {f"{key} of {name}": value for name, held in kept.items() for key, value in held.items()}
    step.unshard()
    state = optimizer.state_dict()["state"]
    found |= {f"{key} of {number}": value for number, held in state.items() for key, value in held.items()}
    return {"results": results, **found}


def differences(mine: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """The names of what is not the same, to the bit."""
    wrong = sorted(set(mine) ^ set(theirs))
    for name in set(mine) & set(theirs):
        a, b = mine[name], theirs[name]
        is_same = torch.equal(a, b) if isinstance(a, Tensor) else a == b
        wrong += [] if is_same else [name]
    return wrong


def apart(names: list[str]) -> dict[str, tuple[list[str], list[bool]]]:
    """What differs between state that is shared out and state that is whole; and the steps that were skipped."""
    found, exchange.choose_methods = {}, choose_all  # type: ignore[assignment]
    for name in names:
        make, options = CASES[name]
        mine, theirs = (trained(shard, make, seeded(), options) for shard in ("optimizer", False))
        found[name] = differences(mine, theirs), [skipped for _, _, skipped, _ in mine["results"]]
    return found


def check(found: list[dict[str, tuple[list[str], list[bool]]]]) -> None:
    for each in found:
        for name, (wrong, skipped) in each.items():
            assert not wrong, f"{name}: {wrong}"
            assert skipped == [i == OVERFLOWS and "loss_scale" in CASES[name][1] for i in range(STEPS)], name


def test_two_ranks_have_the_bits_of_whole_state() -> None:
    check(run_ranks(2, apart, ["one micro-batch", "the optimizer's own step", "groups", "everything"]))


@pytest.mark.slow
def test_they_do_however_gradients_travel() -> None:
    check(run_ranks(2, apart, ["8-bit", "top-k", "low-rank", "auto"]))


@pytest.mark.slow
def test_four_ranks_have_the_bits_of_whole_state() -> None:
    check(run_ranks(4, apart, ["everything"]))


@pytest.mark.slow
def test_two_and_four_ranks_do_in_all_ways() -> None:
    check(run_ranks(2, apart, list(CASES), timeout=600))
    check(run_ranks(4, apart, ["the optimizer's own step", "value", "8-bit, four", "in a file"], timeout=600))


def with_stock_kernels() -> tuple[float, float]:
    with graphopt.kernels.use("stock"):
        mine, theirs = (trained(shard, momentum, seeded(), {"accumulate": 4}) for shard in ("optimizer", False))
    losses = [torch.tensor([float(loss) for loss, *_ in each["results"]]) for each in (mine, theirs)]
    names = [name for name in theirs if name.startswith("parameter")]
    return ulps(*losses), max(ulps(mine[name], theirs[name]) for name in names)


def test_torchs_own_kernels_round_the_last_elements_of_rows_otherwise() -> None:
    """They take eight at a time, with product and sum as one, and what is left one by one. 0.5 ulps were measured."""
    for loss_ulps, parameter_ulps in run_ranks(2, with_stock_kernels):
        assert loss_ulps <= 2
        assert parameter_ulps <= 4


def on_uneven_ranks() -> list[str]:
    """Other rows and another number of micro-batches on each rank, which whole gradients allow."""
    options = {"accumulate": 2 + dist.get_rank(), "weights": "tokens", "clip": graphopt.ClipNorm(0.05)}
    return differences(*(trained(shard, adamw, seeded(), options, uneven=1) for shard in ("optimizer", False)))


def test_batches_may_be_uneven() -> None:
    assert run_ranks(2, on_uneven_ranks) == [[], []]


def with_masters(how: str, other: Any, make: Make, options: dict[str, Any]) -> list[str]:
    """Half parameters whose float32 masters are rows too."""
    steps = (trained(shard, make, seeded().bfloat16(), {"masters": True, **options}) for shard in (how, other))
    return differences(*steps)


@pytest.mark.fast(1)
@pytest.mark.parametrize(("make", "options"), [(adamw, {"accumulate": 4}), (rmsprop, {"loss_scale": SCALE})])
def test_masters_are_shared_out(make: Make, options: dict[str, Any]) -> None:
    assert run_ranks(2, with_masters, "optimizer", False, make, options) == [[], []]


def test_masters_are_rows_beside_rows_of_gradients() -> None:
    """Both sum half gradients over ranks in half precision, and up in float32."""
    assert run_ranks(2, with_masters, "gradients", True, adamw, {"accumulate": 2}) == [[], []]


class OneBias(nn.Module):
    """One parameter travels alone though it is small, and one has no elements."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(CLASSES, 512), nn.Linear(512, CLASSES)
        self.none = nn.Parameter(torch.zeros(0, 3))
        self.register_buffer("shift", torch.zeros(512))

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embedding(ids) + self.shift) + self.none.sum()


def on_one_bias() -> list[list[str]]:
    whole = trained(False, adamw, seeded(OneBias), {})
    return [differences(trained(how, adamw, seeded(OneBias), {}), whole) for how in ("optimizer", "gradients")]


def test_a_small_parameter_may_be_the_only_one() -> None:
    assert run_ranks(2, on_one_bias) == [[[], []]] * 2

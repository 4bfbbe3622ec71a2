"""Several processes train what one process does on the same global batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn, optim

import graphopt
from graphopt.base.errors import BudgetError, CaptureError, GraphoptError, UsageError
from tests.support.models import Perceptron
from tests.support.ranks import run_ranks
from tests.support.train_together import Deep, Ran, Training, run


def momentum(parameters: Any, lr: float) -> optim.Optimizer:
    """SGD keeps a rounding as small as it is, which Adam would blow up where gradients are small."""
    return optim.SGD(parameters, lr, momentum=0.9)


EVERYTHING = {
    "accumulate": 2,
    "clip": graphopt.ClipNorm(0.5),
    "loss_scale": graphopt.DynamicLossScale(2.0**10, interval=2),
    "cost_model": "auto",
}
TWO = Training(EVERYTHING, (6, 2), 3, (215_000, 100_000), optimizer=momentum)
FOUR = Training(
    {"clip": graphopt.ClipNorm(0.5), "cost_model": "auto"},
    (2, 2, 3, 1),
    2,
    (160_000, 160_000, 220_000, 100_000),
    optimizer=momentum,
)


def ulps(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> float:
    """The largest difference in units of the last place of the largest element."""
    largest = float(np.abs(expected).max())
    return float(np.abs(found - expected).max()) / largest / 2.0**-23 if largest else float(np.abs(found).max())


def check(together: list[Ran], alone: Ran, budgets: Sequence[int | None]) -> None:
    for ran, budget_bytes in zip(together, budgets, strict=False):
        assert ran.measured_bytes <= ran.predicted_bytes <= (budget_bytes or 0)
        assert ran.recomputed > 0
        assert ran.code.count("all_reduce_.default(") == 1 == ran.code.count("wait_tensor.default(")
        assert {name: tensor.tobytes() for name, tensor in ran.state.items()} == {
            name: tensor.tobytes() for name, tensor in together[0].state.items()
        }
        assert (ran.losses, ran.norms) == (together[0].losses, together[0].norms)
    worst = max(ulps(together[0].state[name], expected) for name, expected in alone.state.items())
    print(f"{len(together)} ranks: {worst:.1f} ulps from one process")
    assert worst <= 16
    assert together[0].losses == pytest.approx(alone.losses, rel=1e-6)


def test_two_uneven_ranks_train_as_one_process() -> None:
    """Recomputation, micro-batches, clipping, a loss scale and token weights that differ from rank to rank.

    3.4 ulps were measured.
    """
    check(run_ranks(2, run, TWO), run(TWO), TWO.budgets)


def test_four_ranks_train_as_one_process() -> None:
    """4.3 ulps were measured."""
    check(run_ranks(4, run, FOUR), run(FOUR), FOUR.budgets)


def both_halves() -> list[bytes]:
    """Two micro-batches in one process, in whose place two ranks with one each could be."""
    training = Training(rows=(4, 4), optimizer=momentum)
    if not dist.is_initialized():
        training = replace(training, options={"accumulate": 2})
    # other kernels add a product to a sum in one go, and a message only when it is there
    with graphopt.kernels.use("stock"):
        return [tensor.tobytes() for tensor in run(training).state.values()]


def test_two_ranks_have_the_bits_of_two_micro_batches() -> None:
    together, threads = run_ranks(2, both_halves), torch.get_num_threads()
    torch.set_num_threads(1)  # as ranks have: sums are cut by threads
    try:
        assert together[0] == together[1] == both_halves()
    finally:
        torch.set_num_threads(threads)


class Counting(Perceptron):
    """Takes what only one rank has."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.more = nn.ModuleList([nn.Linear(6, 6) for _ in range(layers)])

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        for layer in self.more:
            x = layer(x)
        return super().forward(x, y)


class Broken(Perceptron):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if dist.get_rank() == 1:
            torch._dynamo.graph_break()
        return super().forward(x, y)


def step_of(model: nn.Module, budget: int | None = None, **options: Any) -> graphopt.TrainStep:
    return graphopt.train_step(
        model, None, optim.SGD(model.parameters(), 0.1), budget, cost_model="roofline", **options
    )


def raised(call: Any) -> tuple[type[BaseException], str]:
    try:
        call()
    except GraphoptError as error:
        return type(error), str(error)
    return type(None), ""


def errors() -> dict[str, tuple[type[BaseException], str]]:
    """What each rank raises; they go on together after every one of them."""
    rank = dist.get_rank()
    x, y = torch.randn(2, 4, 6)
    tokens = torch.full((4, 6), -100 if rank else 1)
    found = {}
    deep = step_of(Deep(), weights="tokens")
    found["weighs nothing"] = raised(lambda: deep(torch.ones(4, 6, dtype=torch.long), tokens))
    found["too large for one"] = raised(lambda: step_of(Perceptron(), 10**7 if rank else 100)(x, y))
    found["broken on one"] = raised(lambda: step_of(Broken())(x, y))
    found["frozen on one"] = raised(lambda: step_of(partly_frozen(frozen=rank == 1))(x, y))
    found["in the backward"] = raised(lambda: step_of(Perceptron(), update_in_backward=True))
    found["DDP"] = raised(lambda: step_of(nn.parallel.DistributedDataParallel(Perceptron())))
    found["momentum twice"] = raised(with_momentum)
    out = step_of(Perceptron())(x, y)
    assert math.isfinite(out.loss)
    return found


def with_momentum() -> graphopt.TrainStep:
    model = Perceptron()
    return graphopt.train_step(
        model, None, optim.SGD(model.parameters(), 0.1, momentum=0.9), compress=graphopt.DGC(0.1)
    )


def partly_frozen(*, frozen: bool) -> nn.Module:
    model = Perceptron()
    model.first.bias.requires_grad_(not frozen)
    return model


def test_what_one_rank_runs_into_all_ranks_raise() -> None:
    found = run_ranks(2, errors)
    expected = {
        "weighs nothing": (UsageError, "the batch of rank 1 weighs nothing"),
        "too large for one": (BudgetError, "too small"),
        "broken on one": (CaptureError, "cannot capture this training step whole"),
        "frozen on one": (UsageError, "rank 0 would send the gradient of"),
        "in the backward": (UsageError, "does not go with several processes"),
        "DDP": (UsageError, "before DistributedDataParallel"),
        "momentum twice": (UsageError, "0 to the optimizer"),
    }
    for what, (kind, text) in expected.items():
        for rank in found:
            assert rank[what][0] is kind and text in rank[what][1], (what, rank[what])


def report() -> str:
    step = step_of(Deep(64), compress=graphopt.EightBit())
    ids = torch.ones(2, 8, dtype=torch.long)
    step(ids, ids)
    return str(step.report)


def test_the_report_says_what_is_sent() -> None:
    for text in run_ranks(2, report):
        assert "2 ranks" in text and "EightBit()" in text


def test_a_process_alone_compresses_nothing_and_says_so() -> None:
    assert "no effect in a single process" in report()

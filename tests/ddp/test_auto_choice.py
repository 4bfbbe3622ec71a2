"""compress_ddp("auto") is judged by steps: what is predicted to gain little of them, or gains nothing, is not taken."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import graphopt
from graphopt.compression.choose import Auto, ChosenMethods, MethodPrice, choose
from graphopt.compression.methods import Compression, EightBit, TopK
from graphopt.ddp import auto_choice
from graphopt.ddp.auto_choice import TIMED_STEPS, AutoChoice
from graphopt.device.ranks import Ranks
from tests.support.ranks import run_ranks
from tests.support.tensors import same_bits

EIGHT = EightBit()
ALONE: Any = SimpleNamespace(backend="gloo")


def _step(*buckets: tuple[str, ...]) -> Any:
    arrivals = [SimpleNamespace(names=names, shapes=((4,),)) for names in buckets]
    return SimpleNamespace(arrivals=arrivals, backward_seconds=lambda: 0.0)


def _choosing(monkeypatch: pytest.MonkeyPatch, method: Compression | None) -> tuple[AutoChoice, list[float]]:
    """One whose prediction is `method` for all buckets, and the seconds of a step that it was made from."""
    asked: list[float] = []

    def chosen(_: Ranks, __: Auto, buckets: Sequence[Any], ___: float, *, step_seconds: float) -> ChosenMethods:
        asked.append(step_seconds)
        return ChosenMethods((method,) * len(buckets), ("predicted",))

    monkeypatch.setattr(auto_choice, "choose_methods", chosen)
    monkeypatch.setattr(auto_choice, "highest", lambda _, numbers, __: numbers)
    monkeypatch.setattr(auto_choice, "time", SimpleNamespace(monotonic=lambda: 0.0))
    return AutoChoice(ALONE, Auto((EIGHT,))), asked


def _run(choice: AutoChoice, seconds: Sequence[float], start: float = 0.0) -> None:
    """Steps that take so many seconds each, from the end of one at `start` on."""
    for one in seconds:
        start += one
        choice.finished(_step(("a",), ("b",)), start)


@pytest.mark.parametrize(("then", "stays"), [(0.9, True), (1.9, False)])
def test_what_made_steps_longer_is_taken_back(monkeypatch: pytest.MonkeyPatch, then: float, stays: bool) -> None:
    choice, asked = _choosing(monkeypatch, EIGHT)
    choice.finished(_step(("a", "b")), 5.0)  # DDP's first buckets
    choice.finished(_step(("a",), ("b",)), 6.0)
    _run(choice, [1.0, 30.0, 1.0], start=6.0)  # an evaluation between two of them
    assert asked == [1.0] and choice.method_of(("a",)) == choice.method_of(("b",)) == EIGHT and not choice.is_settled
    _run(choice, [then] * TIMED_STEPS)
    assert choice.is_settled and choice.method_of(("a",)) == (EIGHT if stays else None)
    assert choice.reasons[0] == "predicted"
    said = f"steps took {1000 * then:,.1f} ms with it, 1,000.0 ms without"
    assert choice.reasons[1] == (said if stays else f"no compression after all: {said}")
    _run(choice, [9.0] * 10)
    assert choice.method_of(("a",)) == (EIGHT if stays else None) and asked == [1.0]


def test_other_buckets_are_judged_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    choice, asked = _choosing(monkeypatch, None)
    choice.finished(_step(("a",), ("b",)), 0.0)
    _run(choice, [2.0] * TIMED_STEPS)
    assert choice.is_settled and asked == [2.0]
    for index in range(TIMED_STEPS + 1):
        choice.finished(_step(("a", "b")), 3.0 * index)
    assert asked == [2.0, 3.0]


def test_a_tenth_of_the_step_must_be_gained_and_not_of_the_messages() -> None:
    """One bucket at the backward's end: its message is all of the span, and a tenth of the step."""
    prices = [{None: MethodPrice(0.0, 1.0), EIGHT: MethodPrice(0.1, 0.2)}]
    assert choose(Auto((EIGHT,)), prices, [0.0]).methods == (EIGHT,)
    assert choose(Auto((EIGHT,)), prices, [0.0], 6.9).methods == (EIGHT,)
    choice = choose(Auto((EIGHT,)), prices, [0.0], 10.0)
    assert choice.methods == (None,) and "the rest of a step: 9,000.0 ms" in choice.reasons


def _with_auto(steps: int) -> tuple[tuple[str, ...], bool, float]:
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256)))
    compression = graphopt.compress_ddp(model, "auto")
    for index in range(steps):
        generator = torch.Generator().manual_seed(10 * index + dist.get_rank())
        model.zero_grad()
        model(torch.randn(8, 256, generator=generator)).square().mean().backward()
    gradient = model.module[0].weight.grad
    return compression.reasons, compression.state_dict()["state"] == {}, float(gradient.abs().sum())


def test_ranks_choose_alike_and_say_what_steps_took() -> None:
    (reasons, is_empty, total), other = run_ranks(2, _with_auto, 2 * TIMED_STEPS + 4)
    assert other == (reasons, is_empty, total)
    is_taken = any("of 1 buckets" in line for line in reasons)
    assert is_taken == any("steps took" in line for line in reasons)
    assert not any("no compression after all" in line for line in reasons) or is_empty


def _taken_back() -> tuple[list[Tensor], Tensor, list[Tensor], bool]:
    """The mean gradients of three steps, of which two are compressed, and what they were without."""
    torch.manual_seed(0)
    plain = DistributedDataParallel(nn.Linear(64, 64, bias=False))
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Linear(64, 64, bias=False))
    compression = graphopt.compress_ddp(model, Auto((TopK(0.05),)))
    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    for index in range(3):
        if index < 2:
            compression._choice._chosen = {("weight",): TopK(0.05)}
            compression._choice._buckets = (("weight",),)
        else:
            compression._choice._chosen, compression._choice.is_settled = {}, True
        generator = torch.Generator().manual_seed(10 * index + dist.get_rank())
        inputs = torch.randn(8, 64, generator=generator)
        for some, each in zip(found, (model, plain), strict=True):
            each.zero_grad()
            each(inputs).square().mean().backward()
            some.append(each.module.weight.grad.clone())
    return found[0], sum(found[1]), found[1], compression.state_dict()["state"] == {}


def test_what_was_kept_back_travels_when_compression_is_taken_back() -> None:
    for compressed, total, plain, is_empty in run_ranks(2, _taken_back):
        assert is_empty and not same_bits(compressed[0], plain[0])
        assert torch.allclose(sum(compressed), total, rtol=1e-4, atol=1e-6)

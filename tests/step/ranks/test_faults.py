"""Ranks that die, hang or overflow in the middle of a training step, and ranks that start again."""

from __future__ import annotations

import os
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import graphopt
from graphopt.base.errors import RankError
from graphopt.compression.methods import DGC, QSGD, Compression, EightBit, HalfCast, PowerSGD, Threshold, TopK
from graphopt.graph.nodes import is_collective
from tests.support.ranks import RankError as ProcessError
from tests.support.ranks import run_ranks

METHODS: tuple[Compression | None, ...] = (
    *(None, HalfCast(), EightBit(), QSGD(4), TopK(0.05), DGC(0.05), Threshold(1e-3), PowerSGD(2)),
)
FAILING_STEP = 3


def _model() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 64))


def _training(method: Compression | None, **options: Any) -> graphopt.TrainStep:
    torch.manual_seed(5)
    model = _model()
    momentum = 0.0 if isinstance(method, DGC) else 0.9
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=momentum)
    return graphopt.train_step(
        model, nn.functional.mse_loss, optimizer, compress=method, cost_model="roofline", **options
    )


def _batch(number: int) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(100 * number + dist.get_rank())
    return torch.randn(8, 64, generator=source), torch.randn(8, 64, generator=source)


def _state(step: graphopt.TrainStep) -> dict[str, Any]:
    return {"model": step.model.state_dict(), "optimizer": step.optimizer.state_dict(), "step": step.state_dict()}


def _load(step: graphopt.TrainStep, state: dict[str, Any]) -> None:
    step.model.load_state_dict(state["model"])
    step.optimizer.load_state_dict(state["optimizer"])
    step.load_state_dict(state["step"])


def _save(state: dict[str, Any], path: Path) -> None:
    """In one piece: whoever dies in here leaves the one before."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def _file(folder: str) -> Path:
    return Path(folder) / f"rank{dist.get_rank()}.pt"


def _numbers(step: graphopt.TrainStep) -> list[Any]:
    return [parameter.detach().numpy().copy() for parameter in step.model.parameters()]


def _fail_before_the_first_message(step: graphopt.TrainStep, how: Any, *args: Any) -> None:
    """Let the graph of the step call `how(*args)` in its backward, where it would send its first gradients."""
    graph = step.graph_module.graph
    with graph.inserting_before(next(node for node in graph.nodes if is_collective(node))):
        graph.call_function(how, args)
    step.graph_module.recompile()
    # its code was made when the graph was
    step._windows = {key: (window, window.forward) for key, (window, _) in step._windows.items()}


def _dies(folder: str) -> float:
    """What the rank that lives sees: seconds until its error. The other is killed in mid-step."""
    step = _training(TopK(0.05))
    for number in range(FAILING_STEP):
        step(*_batch(number))
        _save({**_state(step), "number": number}, _file(folder))
    if dist.get_rank() == 1:
        _fail_before_the_first_message(step, os.kill, os.getpid(), signal.SIGKILL)
    start = time.monotonic()
    with pytest.raises(RankError, match=r"rank 0 lost the other 1 .* last saved state"):
        step(*_batch(FAILING_STEP))
    seconds = time.monotonic() - start
    assert seconds < 30, "half of the group's timeout"
    saved = torch.load(_file(folder))
    assert saved["number"] == FAILING_STEP - 1
    return seconds


def _hangs() -> float:
    step = _training(EightBit(), group=dist.new_group(timeout=timedelta(seconds=2)))
    for number in range(2):  # the first step's graph also makes the optimizer's state
        step(*_batch(number))
    if dist.get_rank() == 1:
        _fail_before_the_first_message(step, time.sleep, 5)
    start = time.monotonic()
    with pytest.raises(RankError, match="lost the other 1"):
        step(*_batch(2))
    return time.monotonic() - start


def test_a_rank_that_is_killed_ends_the_others_and_leaves_what_was_saved(tmp_path: Path) -> None:
    with pytest.raises(ProcessError) as raised:
        run_ranks(2, _dies, str(tmp_path))
    assert str(raised.value) == "rank 1: the process died"
    for rank in (0, 1):
        saved = torch.load(tmp_path / f"rank{rank}.pt")
        assert saved["number"] == FAILING_STEP - 1
        assert all(bool(value.isfinite().all()) for value in saved["model"].values())


def test_a_rank_that_hangs_ends_the_others_within_the_timeout() -> None:
    assert 2 <= run_ranks(2, _hangs)[0] < 5


def _overflows(method: Compression | None) -> tuple[list[Any], list[Any]]:
    """Parameters after three steps, and after the same with one between in which one rank's gradient is NaN."""
    results = []
    for with_overflow in (False, True):
        step = _training(method, loss_scale=graphopt.ConstantLossScale(1024.0))
        for number in range(3):
            if with_overflow and number == 2:
                inputs, targets = _batch(50)
                if dist.get_rank() == 1:
                    inputs[3, 5] = torch.nan
                before = _numbers(step)
                assert step(inputs, targets).skipped, method
                assert _are_equal(before, _numbers(step)), method
            assert not step(*_batch(number)).skipped, method
        results.append(_numbers(step))
    return results[0], results[1]


def _all_overflow() -> list[tuple[list[Any], list[Any]]]:
    return [_overflows(method) for method in METHODS]


def test_a_nan_on_one_rank_skips_the_step_on_all_and_poisons_nothing() -> None:
    first, second = run_ranks(2, _all_overflow)
    for method, (plain, overflown), (_, other_overflown) in zip(METHODS, first, second, strict=True):
        assert _are_equal(overflown, other_overflown), f"ranks differ: {method}"
        if not isinstance(method, QSGD):  # whose random numbers of a step depend on how many there were
            assert _are_equal(plain, overflown), method


def _unseen(options: dict[str, Any]) -> tuple[bool, list[Any], list[Any]]:
    """Whether a step with a NaN on rank 1 is skipped, and the parameters before and after it."""
    step = _training(**{"method": None, **options})
    inputs, targets = _batch(0)
    if dist.get_rank() == 1:
        inputs[3, 5] = torch.nan
    before = _numbers(step)
    out = step(inputs, targets)
    return out.skipped, before, _numbers(step)


def _all_unseen() -> list[tuple[bool, list[Any], list[Any]]]:
    scale, clip = graphopt.ConstantLossScale(1.0), graphopt.ClipNorm(1.0)
    return [_unseen(options) for options in ({}, {"clip": clip}, {"loss_scale": scale}, {"method": HalfCast()})]


def test_a_nan_is_looked_for_with_a_loss_scale_or_compression_and_else_it_is_everybodys() -> None:
    first, second = run_ranks(2, _all_unseen)
    for number, ((skipped, before, after), (other_skipped, _, other)) in enumerate(zip(first, second, strict=True)):
        assert skipped == other_skipped == (number >= 2)
        assert [one.tobytes() for one in after] == [one.tobytes() for one in other]
        if skipped:
            assert _are_equal(before, after)
        else:
            assert all(bool((one != one).any()) for one in after), "as in one process"


def _trained(method: Compression | None, file: Path, first: int, last: int) -> list[Any]:
    """Steps first..last, from what was saved before `first` if that is not 0; saved after the last."""
    step = _training(method, loss_scale=graphopt.DynamicLossScale(initial=256.0, interval=2))
    if first:
        _load(step, torch.load(file))
    for number in range(first, last):
        step(*_batch(number))
    _save(_state(step), file)
    return _numbers(step)


def _through_and_half(folder: str) -> list[list[Any]]:
    """Parameters after five steps of each method; three steps of each are left in files."""
    through = []
    for index, method in enumerate(METHODS):
        file = Path(folder) / f"{index}-{dist.get_rank()}.pt"
        through.append(_trained(method, file, 0, 5))
        _trained(method, file, 0, 3)
    return through


def _second_half(folder: str) -> list[list[Any]]:
    return [
        _trained(method, Path(folder) / f"{index}-{dist.get_rank()}.pt", 3, 5) for index, method in enumerate(METHODS)
    ]


@pytest.mark.slow
def test_a_restart_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    through = run_ranks(2, _through_and_half, str(tmp_path))
    restarted = run_ranks(2, _second_half, str(tmp_path))
    for rank in (0, 1):
        for method, one, other in zip(METHODS, through[rank], restarted[rank], strict=True):
            assert _are_equal(one, other), method


def _are_equal(one: list[Any], other: list[Any]) -> bool:
    return all(bool((a == b).all()) for a, b in zip(one, other, strict=True))

"""How batches are cut: which sizes are tried, what is chosen, and that it is what it says."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import graphopt
from graphopt.base.errors import BudgetError, CaptureError
from graphopt.cost_models.device_speed import UNKNOWN_DEVICE
from graphopt.device import measure
from graphopt.step.micro_batches.division import Trial, micro_sizes, walk
from graphopt.step.train_step import TrainStep


@given(st.integers(1, 3000))
def test_sizes_fall_from_the_batch_to_one_row(rows: int) -> None:
    sizes = micro_sizes(rows)
    assert sizes[0] == rows and sizes[-1] == 1 and sizes == sorted(set(sizes), reverse=True)
    assert len(sizes) <= 2 * math.log2(rows) + 3
    numbers = [-(-rows // size) for size in sizes]
    assert all(after <= 2.5 * before for before, after in itertools.pairwise(numbers))


def test_sizes_that_divide_the_batch_come_first() -> None:
    assert micro_sizes(64) == [64, 32, 22, 16, 11, 8, 6, 4, 3, 2, 1]
    assert micro_sizes(30) == [30, 15, 10, 5, 3, 2, 1]
    assert micro_sizes(1) == [1]


@dataclass(frozen=True)
class Fake:
    """A micro-batch's plan as `Trial` sees it, with the seconds that it would take."""

    seconds: float
    eager_seconds: float


class FakeTrial(Trial):
    @property
    def seconds(self) -> float:
        return self.micro.seconds if self.micro else math.inf  # type: ignore[union-attr, return-value]

    @property
    def eager_seconds(self) -> float:
        return self.micro.eager_seconds if self.micro else math.inf  # type: ignore[union-attr, return-value]


@given(st.integers(1, 512), st.integers(0, 1000), st.integers(1, 50), st.integers(0, 8000), st.floats(0, 20))
def test_the_walk_misses_no_size_above_the_one_it_finds(
    rows: int, fixed: int, each: int, budget: int, curved: float
) -> None:
    """Of sizes that fit, every one larger than the last tried has been tried, however bytes grow."""

    def need(size: int) -> int:
        return fixed + each * size + int(curved * size**1.5)

    def trial(size: int) -> Trial:
        fits = need(size) <= budget
        return FakeTrial(rows, size, need(size), fixed, 0.0, Fake(100 / size, 0.0) if fits else None)  # type: ignore

    tried = [t.micro_rows for t in walk(rows, budget, trial)]
    assert len(tried) == len(set(tried)) and tried[0] == rows
    fitting = [size for size in micro_sizes(rows) if need(size) <= budget]
    assert {size for size in tried if need(size) <= budget} <= set(fitting)
    assert (fitting[0] in tried) if fitting else (1 in tried)


def test_the_walk_ends_where_smaller_ones_are_slower() -> None:
    def trial(size: int) -> Trial:
        seconds = {64: 9.0, 32: 7.0, 22: 8.0, 16: 6.0, 11: 6.5, 8: 7.0, 6: 1.0}.get(size, 1.0)
        return FakeTrial(64, size, 0, 0, 0.0, Fake(seconds, 5.0))  # type: ignore[arg-type]

    assert [t.micro_rows for t in walk(64, 1, trial)] == [64, 32, 22, 16, 11, 8]


def blocks() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*[m for _ in range(4) for m in (nn.Linear(32, 96), nn.GELU(), nn.Linear(96, 32))])


def batch(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(rows, 32), torch.randn(rows, 32)


def auto(model: nn.Module, budget: int | None, rows: int = 256, **options: object) -> TrainStep:
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    return graphopt.train_step(
        model, nn.functional.mse_loss, optimizer, budget, accumulate="auto", cost_model="roofline",
        example_inputs=batch(rows), **options,
    )  # fmt: skip


def peak_of(step: TrainStep, model: nn.Module, rows: int) -> int:
    given = batch(rows)
    step(*given)
    state = [tensor for entry in step.optimizer.state.values() for tensor in entry.values()]
    return measure.peak_bytes(lambda: step(*given), [*model.parameters(), *given, *state, *step.accumulators], "cpu")


def test_with_room_the_batch_is_cut_no_more_than_is_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    # on a machine whose ops cost little beside their arithmetic, smaller pieces may tie
    monkeypatch.setattr("graphopt.cost_models.roofline.device_speed", lambda _device: UNKNOWN_DEVICE)
    model = blocks()
    step = auto(model, None)
    # with the roofline's prices every cut reads the weights once more
    assert step.micro_batch_size == 256 and step.plan.overhead == 0
    report = str(step.report)
    assert "micro-batches 1 of 256 rows" in report.replace("\n", " ") and "optimizer" in report


@pytest.mark.slow
def test_the_smaller_the_budget_the_smaller_the_pieces_and_every_one_fits() -> None:
    free = auto(blocks(), None).plan
    with pytest.raises(BudgetError, match=r"no way to cut the batch of 256 rows fits") as least:
        auto(blocks(), 1)
    sizes = []
    for share in (0.9, 0.5, 0.1, 0.0):
        budget = int(least.value.minimum_bytes + share * (free.peak_bytes - least.value.minimum_bytes))
        model = blocks()
        step = auto(model, budget)
        sizes.append(step.micro_batch_size)
        peak_bytes = peak_of(step, model, 256)
        # without the profiler's figures, the scratch of ops is not in the plan: a row of the loss here
        assert step.plan.peak_bytes <= budget and peak_bytes <= budget + 256 * 32 * 4
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[-1] == 1


@pytest.mark.slow
def test_the_choice_is_the_fastest_of_all_ways_and_trains_as_one_batch_would() -> None:
    free = auto(blocks(), None).plan.peak_bytes
    model = blocks()
    step = auto(model, int(0.5 * free))
    by_hand = []
    for accumulate in (1, 2, 3, 4, 8, 16):
        other = blocks()
        try:
            one = graphopt.train_step(
                other, nn.functional.mse_loss, torch.optim.AdamW(other.parameters(), fused=True), int(0.5 * free),
                accumulate=accumulate, cost_model="roofline", example_inputs=batch(256),
            )  # fmt: skip
        except BudgetError:
            continue
        by_hand.append(one.report.step.seconds)
    assert step.report.step.seconds <= min(by_hand) * (1 + 1e-9)
    assert 1 < step.report.step.micro_batches == -(-256 // step.micro_batch_size)

    whole = blocks()
    optimizer = torch.optim.AdamW(whole.parameters(), fused=True)
    for _ in range(3):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(whole(batch(256)[0]), batch(256)[1])
        loss.backward()
        optimizer.step()
        assert step(*batch(256)).loss == pytest.approx(loss.item(), rel=1e-5)
    torch.testing.assert_close(model.state_dict(), whole.state_dict(), rtol=1e-4, atol=1e-5)


def test_sizes_that_the_model_does_not_take_are_passed_over() -> None:
    def trial(size: int) -> Trial:
        error = CaptureError("two rows at least") if size < 3 else BudgetError("too small", 10 * size)
        fits = 3 <= size < 5
        micro = Fake(1.0, 0.5) if fits else None
        return FakeTrial(64, size, 10 * size, 0, 0.0, micro, None if fits else error)  # type: ignore[arg-type]

    # 64 asks for one row, which cannot be, nor can two; of three, the next larger one fits too
    assert [t.micro_rows for t in walk(64, 5, trial)] == [64, 1, 2, 3, 4, 6]


def test_batch_norm_is_not_cut_in_silence(recwarn: pytest.WarningsRecorder) -> None:
    def norms() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(32, 64), nn.BatchNorm1d(64), nn.Linear(64, 32))

    with pytest.raises(BudgetError) as least:
        auto(norms(), 1, rows=64)
    assert not recwarn.list
    with pytest.warns(UserWarning, match=r"accumulate='auto' cuts the batch into \d+ micro-batches"):
        auto(norms(), least.value.minimum_bytes + 2000, rows=64)


def test_the_choice_is_made_at_the_first_batch_where_no_example_was_given() -> None:
    model = blocks()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = graphopt.train_step(model, nn.functional.mse_loss, optimizer, accumulate="auto", cost_model="roofline")
    assert step.micro_batch_size == 0
    step(*batch(64))
    assert step.micro_batch_size == 64


@pytest.mark.parametrize("accumulate", [1, "auto"])
def test_an_uncut_batch_may_be_followed_by_a_larger_one(accumulate: int | str) -> None:
    model, eager = blocks(), blocks()
    eager.load_state_dict(copy.deepcopy(model.state_dict()))
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, eager)]
    step = graphopt.train_step(
        model, nn.functional.mse_loss, optimizers[0], accumulate=accumulate, cost_model="roofline"
    )  # type: ignore[call-overload]
    for rows in (8, 20, 8):
        step(*batch(rows))
        optimizers[1].zero_grad()
        nn.functional.mse_loss(eager(batch(rows)[0]), batch(rows)[1]).backward()
        optimizers[1].step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), eager.parameters(), strict=True))


@pytest.mark.parametrize("wrong", [0, True, 1.5, "automatic"])
def test_other_words_are_refused(wrong: object) -> None:
    model = blocks()
    with pytest.raises(graphopt.UsageError, match=r"at least 1, or 'auto'"):
        graphopt.train_step(model, None, torch.optim.SGD(model.parameters()), accumulate=wrong)  # type: ignore[arg-type]

"""Steps that are like those before them are measured as a whole: the same bytes, and nothing is over without a word."""

from __future__ import annotations

import gc
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import graphopt
from graphopt.device.measure import peak_bytes
from graphopt.run.watch import steady
from graphopt.run.watch.measured_step import MeasuredStep, Place
from tests.support.residual_blocks import blocks

ROWS, WIDTH, STEPS, EVENT = 128, 64, 26, 20


@dataclass(eq=False)
class Training:
    """A model in training: what its loop holds, and what it does in a step."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    held: list[torch.Tensor]
    rows: int = ROWS
    zeroes: bool = True
    loss: Callable[[torch.Tensor], torch.Tensor] = lambda y: y.square().mean()

    def step(self) -> None:
        if self.zeroes:
            self.model.zero_grad()
        self.loss(self.model(torch.randn(self.rows, WIDTH))).backward()
        self.optimizer.step()


def wide_loss(y: torch.Tensor) -> torch.Tensor:
    return (y @ torch.ones(WIDTH, 8192)).softmax(-1).log().mean()


def holds_outputs(at: Training) -> None:
    """From now on each output is held."""

    def loss(y: torch.Tensor) -> torch.Tensor:
        at.held.append(y.detach())
        return y.square().mean()

    at.loss = loss


def has_a_larger_loss(at: Training) -> None:
    at.loss = wide_loss


def has_one_larger_loss(at: Training) -> None:
    before = at.loss

    def loss(y: torch.Tensor) -> torch.Tensor:
        at.loss = before
        return wide_loss(y)

    at.loss = loss


def has_an_optimizer_with_state(at: Training) -> None:
    at.optimizer = torch.optim.AdamW(at.model.parameters(), lr=1e-3)


def has_larger_updates(at: Training) -> None:
    def grows(*_: object) -> None:
        torch.ones(1_000_000)

    at.optimizer.register_step_pre_hook(grows)
    at.optimizer.register_step_post_hook(grows)
    at.optimizer.step = with_memory(at.optimizer.step)  # type: ignore[method-assign]


def with_memory(step: Callable[[], object]) -> Callable[[], object]:
    def steps() -> object:
        torch.ones(1_000_000)
        return step()

    return steps


def keeps_gradients(at: Training) -> None:
    at.zeroes = False


def has_other_batches(at: Training) -> None:
    """As many bytes in all, in another shape: the batch is larger, and what was held is less by as much."""
    at.held.pop()
    at.rows = 2 * ROWS


def evaluates(at: Training) -> None:
    at.model.eval()
    with torch.no_grad():
        at.model(torch.randn(8192, WIDTH))
    at.model.train()


def calls_twice(at: Training) -> None:
    at.loss = lambda y: (y - at.model(torch.randn(ROWS, WIDTH))).square().mean()


def another_allocates_in_between(at: Training) -> None:
    def run() -> None:
        blocks(8)(torch.randn(256, WIDTH)).sum().backward()

    def loss(y: torch.Tensor) -> torch.Tensor:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        return y.square().mean()

    at.loss = loss


#: What begins, and a budget between what steps take before and behind that; None where they take no more.
EVENTS: dict[str, tuple[Callable[[Training], None], int | None]] = {
    "held outputs": (holds_outputs, 2_020_000),
    "a larger loss": (has_a_larger_loss, 16_200_000),
    "one larger loss": (has_one_larger_loss, 3_000_000),
    "an optimizer with state": (has_an_optimizer_with_state, 2_600_000),
    "larger updates": (has_larger_updates, 4_500_000),
    "gradients that stay": (keeps_gradients, 2_400_000),
    "other batches": (has_other_batches, 3_000_000),
    "an evaluation": (evaluates, None),
    "two forwards": (calls_twice, 3_000_000),
    "another model in a thread": (another_allocates_in_between, 7_900_000),
}


def train(event: Callable[[Training], None], budget: int | None) -> tuple[tuple[MeasuredStep, ...], list[str]]:
    """The history of a loop in which something begins after some steps, and what was told of it."""
    torch.manual_seed(0)
    model = blocks()
    at = Training(model, torch.optim.SGD(model.parameters(), lr=0.01), [torch.ones(ROWS, WIDTH)])
    graphopt.optimize(model, budget, cost_model="roofline")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(STEPS):
            if step == 3:
                gc.collect()
            if step == EVENT:
                event(at)
            at.step()
    return model.graphopt.history, [str(each.message) for each in caught if "a training step took" in str(each.message)]


@pytest.fixture
def whole_steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """One entry for each step that begins: whether it is measured as a whole."""
    begins, seen = steady.Steady.begins, []

    def sees(self: steady.Steady, signs: steady.Signs) -> steady.WholeStep | None:
        whole = begins(self, signs)
        seen.append(whole is not None)
        return whole

    monkeypatch.setattr(steady.Steady, "begins", sees)
    yield seen


def never(*_: object) -> None:
    return None


@pytest.mark.fast(2)
@pytest.mark.parametrize("event", EVENTS)
def test_what_begins_later_is_measured_as_if_every_step_were_measured_by_place(
    event: str, whole_steps: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    begins, budget = EVENTS[event]
    history, told = train(begins, 2**26)
    assert sum(whole_steps[:EVENT]) >= EVENT - 5 and not told
    monkeypatch.setattr(steady.Steady, "begins", never)
    by_place, _ = train(begins, 2**26)
    assert [step.measured_bytes for step in history] == [step.measured_bytes for step in by_place]
    assert [step.state_bytes for step in history] == [step.state_bytes for step in by_place]
    assert (budget is None) == (len({step.measured_bytes for step in history[2:]}) == 1)


@pytest.mark.fast(1)
@pytest.mark.parametrize("event", [name for name, (_, budget) in EVENTS.items() if budget])
def test_what_begins_later_is_told_and_corrected(
    event: str, whole_steps: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    begins, budget = EVENTS[event]
    history, told = train(begins, budget)
    assert sum(whole_steps[:EVENT]) >= EVENT - 5
    monkeypatch.setattr(steady.Steady, "begins", never)
    by_place, told_by_place = train(begins, budget)
    own, every = ([step.measured_bytes for step in steps] for steps in (history, by_place))
    first = next((i for i, size in enumerate(every) if size > budget), len(every))
    assert first >= EVENT and own[: first + 1] == every[: first + 1]
    # told in the same step; corrected in the same one, or one later where only the next step shows the place
    assert bool(told) == bool(told_by_place) == (first < len(every))
    assert sum(size > budget for size in own) <= sum(size > budget for size in every) + 1
    assert own[-2:] == every[-2:]


def test_peaks_are_the_profilers(whole_steps: list[bool]) -> None:
    model, x = blocks(3), torch.randn(ROWS, WIDTH)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    graphopt.optimize(model, "64MiB", cost_model="roofline")

    def forward_and_backward() -> None:
        model(x).square().mean().backward()

    def step() -> None:
        model.zero_grad()
        forward_and_backward()
        optimizer.step()

    for _ in range(3):
        step()
    gc.collect()
    for _ in range(6):
        step()
    assert whole_steps[-3:] == [True] * 3
    model.zero_grad()
    measured = peak_bytes(forward_and_backward, [*model.parameters(), x], "cpu")
    assert whole_steps[-1] and model.graphopt.history[-1].measured_bytes == measured
    assert model.graphopt.history[-1].seconds is None


def test_a_peak_in_the_update_is_the_profilers(whole_steps: list[bool]) -> None:
    model, x = blocks(3), torch.randn(4, WIDTH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, foreach=True)
    graphopt.optimize(model, "64MiB", cost_model="roofline", optimizer=optimizer)

    def step() -> None:
        model(x).square().mean().backward()
        optimizer.step()

    for number in range(9):
        if number == 3:
            gc.collect()
        model.zero_grad()
        step()
    last = model.graphopt.history[-1]
    assert whole_steps[-3:] == [True] * 3 and last.place is Place.UPDATE
    model.zero_grad()
    state = [t for each in optimizer.state.values() for t in each.values()]
    measured = peak_bytes(step, [*model.parameters(), *state, x], "cpu")
    assert whole_steps[-1] and model.graphopt.history[-1].measured_bytes == measured == last.measured_bytes


def test_neither_between_backward_and_update_nor_behind_it_counts(whole_steps: list[bool]) -> None:
    model, x = blocks(3), torch.randn(ROWS, WIDTH)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    graphopt.optimize(model, "64MiB", cost_model="roofline")
    for number in range(12):
        model.zero_grad()
        model(x).square().mean().backward()
        torch.ones(1_000_000 * (number % 3))
        optimizer.step()
        torch.ones(1_000_000 * (number % 2))
    assert whole_steps[-6:] == [True] * 6
    assert len({step.measured_bytes for step in model.graphopt.history[2:]}) == 1


def test_a_whole_step_that_is_over_says_so_and_the_next_says_where(whole_steps: list[bool]) -> None:
    history, told = train(has_a_larger_loss, 16_200_000)
    assert whole_steps[EVENT] and not whole_steps[EVENT + 1]
    assert "somewhere before the update" in told[0] and "the next one is measured place by place" in told[0]
    assert "a loss outside of the model" in told[1] and "From the next call on" in told[1]
    over = [step.measured_bytes > 16_200_000 for step in history]
    assert over.index(True) == EVENT and sum(over) == 2
    assert history[EVENT].place is Place.WHOLE and history[EVENT + 1].place is Place.LOSS


def test_every_step_is_measured_by_place_where_an_excess_is_an_error_and_now_and_then_elsewhere() -> None:
    model, x = blocks(1, 16), torch.randn(8, 16)
    strict = graphopt.optimize(blocks(1, 16), "64MiB", cost_model="roofline", on_excess="raise")
    graphopt.optimize(model, "64MiB", cost_model="roofline")
    for _ in range(80):
        for each in (model, strict):
            each.zero_grad()
            each(x).square().mean().backward()
    assert all(step.seconds is not None for step in strict.graphopt.history[1:])
    by_place = [i for i, step in enumerate(model.graphopt.history) if step.seconds is not None]
    assert by_place[:2] == [1, 2] and any(60 < i < 70 for i in by_place) and len(by_place) < 6
    report = model.graphopt.report
    assert report.trained.count == 80 and report.outside.steps < 8


def test_batches_of_several_lengths_are_each_known(whole_steps: list[bool]) -> None:
    model = blocks(1, 16)
    graphopt.optimize(model, "64MiB", cost_model="roofline")
    for number in range(24):
        model.zero_grad()
        model(torch.ones(8 * (1 + number % 3), 16)).square().mean().backward()
    assert sum(whole_steps[-9:]) == 9
    peaks = [step.measured_bytes for step in model.graphopt.history]
    assert peaks[-3:] == peaks[-6:-3] and len(set(peaks[-3:])) == 3


def test_an_output_of_a_whole_step_that_is_held_counts(whole_steps: list[bool]) -> None:
    model, x = blocks(1, 16), torch.randn(8, 16)
    graphopt.optimize(model, "64MiB", cost_model="roofline")
    held = []
    for number in range(8):
        model.zero_grad()
        y = model(x)
        y.square().mean().backward()
        held += [y.detach()] if number == 6 else []
        del y
    assert whole_steps[6] and not whole_steps[7]
    assert model.graphopt.history[7].held_bytes == held[0].nbytes
    held.clear()
    model.zero_grad()
    model(x).square().mean().backward()
    assert model.graphopt.history[8].held_bytes == 0


def test_a_step_that_has_no_backward_counts_up_to_the_end_of_its_forward(whole_steps: list[bool]) -> None:
    model, x = blocks(1, 16), torch.randn(8, 16)
    graphopt.optimize(model, "64MiB", cost_model="roofline")
    for _ in range(6):
        model.zero_grad()
        model(x).square().mean().backward()
    model.zero_grad()
    model(x)
    assert whole_steps[-1]
    torch.ones(10_000_000)
    model.zero_grad()
    model(x).square().mean().backward()
    history = model.graphopt.history
    assert len(history) == 8 and history[6].measured_bytes <= history[5].measured_bytes == history[7].measured_bytes

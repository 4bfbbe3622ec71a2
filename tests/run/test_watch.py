"""The watch: measured peaks are the profiler's, an excess is told with its cause, and the plan leaves room for it."""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim.optimizer import _global_optimizer_pre_hooks

import graphopt
from graphopt.device.measure import peak_bytes
from graphopt.run.watch.steady import Steady
from tests.support.residual_blocks import blocks, trained_like_eager


def one_step(model: nn.Module, x: torch.Tensor) -> None:
    model.zero_grad()
    model(x).square().mean().backward()


@pytest.mark.parametrize("width", [16, 64])
def test_what_is_measured_is_what_the_profiler_sees(width: int) -> None:
    model, x = blocks(3, width), torch.randn(128, width)
    graphopt.optimize(model, "64MiB", cost_model="roofline")
    one_step(model, x)
    measured = peak_bytes(lambda: one_step(model, x), [*model.parameters(), *_gradients(model), x], "cpu")
    one_step(model, x)
    # the profiler's figure has the old gradients to the end; the watch sees them go, and new ones come
    assert model.graphopt.history[-1].measured_bytes <= measured
    model.zero_grad()
    measured = peak_bytes(lambda: one_step(model, x), [*model.parameters(), x], "cpu")
    assert model.graphopt.history[-1].measured_bytes == measured
    assert len(model.graphopt.history) == 4


def _gradients(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def held(model: nn.Module, step: int) -> None:
    y = model(torch.randn(256, 64))
    y.square().mean().backward()
    model.__dict__.setdefault("held", []).append(y.detach() if step < 4 else y.sum().item())


def loss_outside(model: nn.Module, _: int) -> None:
    model.zero_grad()
    (model(torch.randn(256, 64)) @ torch.ones(64, 8192)).softmax(-1).log().mean().backward()


def regularised(model: nn.Module, _: int) -> None:
    model.zero_grad()
    (model(torch.randn(256, 64)).square().mean() + sum(p.square().sum() for p in model.parameters())).backward()


class Broken(nn.Module):
    """Most of what it takes is in a piece that is not captured."""

    def __init__(self) -> None:
        super().__init__()
        self.body = blocks(2)
        self.head = nn.Linear(64, 4096, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return head_outside(self.body(x), self.head.weight)


@torch._dynamo.disable
def head_outside(h: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(h @ weight.T, torch.zeros(len(h), dtype=torch.long))


def broken(model: nn.Module, _: int) -> None:
    model.zero_grad()
    model(torch.randn(256, 64)).backward()


CAUSES: dict[str, tuple[Callable[[nn.Module, int], None], int, str]] = {
    "outputs": (held, 2_600_000, "of what the model had returned before were still held"),
    "loss": (loss_outside, 28_000_000, "a loss outside of the model"),
    "regulariser": (regularised, 3_000_000, "No plan counts that much"),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_an_excess_is_told_once_and_then_planned_for(cause: str) -> None:
    loop, budget, words = CAUSES[cause]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = trained_like_eager(loop, 8, budget, cost_model="roofline")
    told = [str(warning.message) for warning in caught if "a training step took" in str(warning.message)]
    assert len(told) == 1 and words in told[0] and "more than the budget" in told[0]
    history = model.graphopt.history
    assert any(each.measured_bytes > budget for each in history)
    assert all(each.measured_bytes <= budget for each in history[-2:])
    assert cause in ("outputs", "regulariser") or all(s.measured_bytes <= s.predicted_bytes for s in history[-2:])


def test_a_piece_outside_of_the_graphs_is_seen() -> None:
    torch.manual_seed(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = graphopt.optimize(Broken(), 6_000_000, cost_model="roofline")
        with pytest.raises(graphopt.BudgetError, match="measured above the plan, between the model's forward"):
            for step in range(4):
                broken(model, step)
    (message,) = (str(warning.message) for warning in caught if "a training step took" in str(warning.message))
    assert "loss outside of the model" in message
    assert model.graphopt.history[0].measured_bytes > 6_000_000


def test_on_excess_raise() -> None:
    model = graphopt.optimize(blocks(), 8_000_000, on_excess="raise", cost_model="roofline")
    with pytest.raises(graphopt.BudgetError, match="loss outside of the model"):
        loss_outside(model, 0)
    with pytest.raises(graphopt.UsageError, match="on_excess"):
        graphopt.optimize(blocks(), "1GiB", on_excess="ignore")


def test_the_state_of_several_optimizers_counts_as_long_as_they_are_there() -> None:
    model, x = blocks(2), torch.randn(256, 64)
    body, head = (torch.optim.AdamW(block.parameters(), lr=1e-3) for block in model)
    optimizers = [body, head, torch.optim.SGD(nn.Linear(64, 64).parameters(), lr=1.0, momentum=0.9)]
    graphopt.optimize(model, "64MiB", cost_model="roofline")
    for _ in range(2):
        one_step(model, x)
        for optimizer in optimizers:
            optimizer.step()
    of_one = model.graphopt.history[-1].state_bytes // 2
    # two moments and a count for each of four parameters of a block
    assert of_one == sum(2 * 4 * p.numel() + 4 for p in model[0].parameters())
    del optimizers, optimizer, head
    gc.collect()
    one_step(model, x)
    assert model.graphopt.history[-1].state_bytes == of_one
    one_step(model, x)
    assert model.graphopt.history[-1].state_bytes == of_one


def test_training_in_eval_is_told_of_once_and_an_evaluation_is_not() -> None:
    """Calls in `eval()` are not planned: a budget of 1 KiB was accepted there without a word."""
    model, x = graphopt.optimize(blocks(2).eval(), 1024, cost_model="roofline"), torch.randn(64, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(x).mean().item()
        with torch.no_grad():
            model(x)
    with pytest.warns(UserWarning, match=r"a backward came to a call of the model in eval\(\)"):
        model(x).mean().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(x).mean().backward()


def test_what_no_plan_can_make_room_for_is_a_budget_error() -> None:
    model = graphopt.optimize(blocks(), 12_000_000, cost_model="roofline")
    with pytest.warns(UserWarning, match="a training step took"):
        loss_outside(model, 0)
    loss_outside(model, 1)  # the smallest plan, to see whether it comes again
    with pytest.raises(graphopt.BudgetError, match="too small") as caught:
        loss_outside(model, 2)
    assert 25_000_000 < caught.value.minimum_bytes < 28_500_000


def test_what_came_once_does_not_end_training() -> None:
    """A tensor that is there for one step, between forward and backward, is no reason to give up."""
    model = graphopt.optimize(blocks(), 2_700_000, cost_model="roofline")
    with pytest.warns(UserWarning, match="a training step took"):
        for step in range(6):
            model.zero_grad()
            loss = model(torch.randn(256, 64)).square().mean()
            passing = torch.ones(1_000_000 if step == 2 else 1)
            loss.backward()
            del passing
    peaks = [step.measured_bytes for step in model.graphopt.history]
    assert peaks[2] > 2_700_000 > max(peaks[3:])
    assert peaks[5] == peaks[1] and not model.graphopt.session.loop.watch.corrections.extra_bytes


def test_a_larger_loss_that_came_once_does_not_end_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """No plan has room for it; the trial shows that it does not come again, and the plan is the one from before."""
    monkeypatch.setattr(Steady, "begins", lambda *_: None)
    model = graphopt.optimize(blocks(), 3_000_000, cost_model="roofline")
    with pytest.warns(UserWarning, match="a loss outside of the model"):
        for step in range(6):
            if step == 2:
                loss_outside(model, step)
            else:
                one_step(model, torch.randn(128, 64))
    peaks = [step.measured_bytes for step in model.graphopt.history]
    assert peaks[2] > 28_000_000 and peaks[5] == peaks[1]
    assert not model.graphopt.session.loop.watch.corrections.loss_bytes


def test_neither_an_evaluation_nor_another_model_counts() -> None:
    model, other = graphopt.optimize(blocks(), 3_000_000, cost_model="roofline"), blocks(8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            one_step(model, torch.randn(256, 64))
            one_step(other, torch.randn(2048, 64))
            model.eval()
            with torch.no_grad():
                model(torch.randn(8192, 64))
            model.train()
    assert all(each.measured_bytes <= 3_000_000 for each in model.graphopt.history)


def test_the_report_shows_what_was_measured() -> None:
    model = graphopt.optimize(blocks(), 28_000_000, example_inputs=torch.randn(256, 64), cost_model="roofline")

    def shown() -> str:
        return " ".join(str(model.graphopt.report).split())

    assert "measured in training" not in shown()
    with pytest.warns(UserWarning, match="a training step took"):
        loss_outside(model, 0)
    assert "1 over the budget" in shown() and "DOES NOT FIT" in shown()
    loss_outside(model, 1)
    trained, history = model.graphopt.report.trained, model.graphopt.history
    assert (trained.count, trained.over_budget) == (2, 1)
    assert (trained.peak_bytes, trained.most_bytes) == (history[1].measured_bytes, history[0].measured_bytes)
    assert "26.7 MiB now, at most 28.8 MiB in 2 steps; 1 over the budget" in shown()
    assert "DOES NOT FIT" not in shown()


def test_steps_and_plans_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="graphopt")
    model = graphopt.optimize(blocks(), 28_000_000, cost_model="roofline")
    with pytest.warns(UserWarning):
        for step in range(3):
            loss_outside(model, step)
    messages = [record.getMessage() for record in caplog.records if record.name == "graphopt"]
    assert sum("planned 1 graph(s)" in message for message in messages) == 2
    assert sum("a training step took" in message for message in messages) == 1


def test_a_watch_goes_with_its_model() -> None:
    gc.collect()
    before = len(_global_optimizer_pre_hooks)
    model = graphopt.optimize(blocks(), "64MiB", cost_model="roofline")
    one_step(model, torch.randn(8, 64))
    assert len(_global_optimizer_pre_hooks) == before + 1
    del model
    gc.collect()
    assert len(_global_optimizer_pre_hooks) == before

"""What is said to lower the least budget does, by at least so much."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import graphopt
from graphopt.plan import infeasible
from graphopt.plan.floor import FloorChange, floor_changes
from graphopt.plan.graph_study import GraphStudy

ROWS, WIDTH, CLASSES = 256, 64, 512


class Classifier(nn.Module):
    """It returns its logits beside the loss, as models of transformers do."""

    def __init__(self, returns_logits: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.returns_logits = returns_logits
        self.body = nn.Sequential(*[nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU()) for _ in range(4)])
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        logits = self.head(self.body(x))
        targets = torch.zeros(len(x), dtype=torch.int64)
        loss = nn.functional.cross_entropy(logits, targets)
        return (loss, logits) if self.returns_logits else (loss,)


def least(model: nn.Module, x: Tensor, **options: object) -> int:
    with pytest.raises(graphopt.BudgetError) as error:
        graphopt.optimize(copy.deepcopy(model), "1B", example_inputs=x, **options)  # type: ignore[arg-type]
    return error.value.minimum_bytes


def changes_of(model: nn.Module, x: Tensor, **options: object) -> tuple[int, dict[str, int]]:
    """The least budget, and what lowers it."""
    found = graphopt.optimize(copy.deepcopy(model), "1GiB", example_inputs=x, **options).graphopt  # type: ignore[arg-type]
    (planned,) = found.planned_graphs  # type: ignore[union-attr]
    changes = floor_changes(planned.study, found.plan.resident_bytes)  # type: ignore[union-attr]
    assert [each.saved_bytes for each in changes] == sorted((each.saved_bytes for each in changes), reverse=True)
    return found.plan.minimum_bytes, {each.what: each.saved_bytes for each in changes}  # type: ignore[union-attr]


def test_each_change_saves_what_it_says_or_more() -> None:
    model, x = Classifier(), torch.randn(ROWS, WIDTH)
    minimum, changes = changes_of(model, x)
    made = {
        "half the batch": least(model, x[: ROWS // 2]),
        "the model in bfloat16 about": least(copy.deepcopy(model).bfloat16(), x.bfloat16()),
        "returning the loss alone (no logits, use_cache=False)": least(Classifier(returns_logits=False), x),
    }
    assert set(made) <= set(changes)
    for what, after in made.items():
        more = 0.2 * minimum if "about" in what else 4096
        assert 0 < changes[what] <= minimum - after + more, what


def test_updates_in_the_backward_and_small_state() -> None:
    model, x = nn.Sequential(*[nn.Linear(256, 256) for _ in range(6)], nn.Flatten(0)), torch.randn(16, 256)
    optimizer = torch.optim.AdamW(model.parameters())
    _, changes = changes_of(model, x, optimizer=optimizer)
    state_bytes = 2 * sum(p.nbytes for p in model.parameters())
    small = next(saved for what, saved in changes.items() if "8 bits" in what)
    assert small == pytest.approx(0.75 * state_bytes, rel=0.01)

    def step(**options: object) -> int:
        own = copy.deepcopy(model)
        adam = torch.optim.AdamW(own.parameters())
        made = graphopt.train_step(own, lambda y, t: (y - t).square().mean(), adam, "1GiB", **options)  # type: ignore[arg-type]
        made(x, torch.zeros(16 * 256))
        return int(made.plan.minimum_bytes)

    saved = changes["train_step(update_in_backward=True)"]
    assert 0 < saved <= step() - step(update_in_backward=True) + 4096


def test_where_nothing_helps_nothing_is_said() -> None:
    model = nn.Linear(4, 4)
    model.weight.requires_grad_(False)
    _, changes = changes_of(model, torch.randn(1, 4))
    assert all(saved > 0 for saved in changes.values())


def test_planners_are_asked_about_a_budget_that_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Classifier(returns_logits=False), torch.randn(ROWS, WIDTH)
    asked: list[bool] = []
    monkeypatch.setattr(
        infeasible, "floor_changes", lambda *args, asks_planners: asked.append(asks_planners) or floor_changes(*args)
    )
    minimum = least(model, x)
    with pytest.raises(graphopt.BudgetError, match=r"What would lower the least, by so much or more: .*half the batch"):
        graphopt.optimize(copy.deepcopy(model), minimum // 2, example_inputs=x)
    assert asked == [False, True]


def test_planners_are_asked_only_where_that_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    found = graphopt.optimize(Classifier(), "1GiB", example_inputs=torch.randn(ROWS, WIDTH)).graphopt
    (planned,) = found.planned_graphs  # type: ignore[union-attr]
    monkeypatch.setattr(GraphStudy, "moving", lambda *_: pytest.fail("asked"))
    changes = floor_changes(planned.study, found.plan.resident_bytes, asks_planners=False)  # type: ignore[union-attr]
    assert changes and all(isinstance(each, FloorChange) for each in changes)


def test_the_report_says_it() -> None:
    found = graphopt.optimize(Classifier(), "1GiB", example_inputs=torch.randn(ROWS, WIDTH)).graphopt
    text = str(found.report)  # type: ignore[union-attr]
    assert "The least budget is" in text and "half the batch" in text

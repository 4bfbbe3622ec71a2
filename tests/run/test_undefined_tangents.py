"""Outputs whose gradients do not come: eager's gradients and Nones to the bit, and no bytes for them."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphopt
from graphopt.device.measure import peak_bytes
from graphopt.run.calls import loop

Use = Callable[[Sequence[Tensor]], Any]


class Heads(nn.Module):
    """Loss, logits, a head that the loss does not need, and a view; tied, frozen, with noise and with statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(64, 16)
        self.body = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.2))
        self.frozen = nn.Linear(16, 16).requires_grad_(False)
        self.other = nn.Sequential(nn.Linear(16, 8), nn.Dropout(0.3), nn.Tanh(), nn.Linear(8, 2))

    def forward(self, scale: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
        h = self.body(self.embedding(tokens) * scale)
        noisy = h + torch.randn_like(h)
        logits = self.frozen(noisy).sin() @ self.embedding.weight.t()
        return nn.functional.cross_entropy(logits, tokens), logits, self.other(noisy), h[:2]


class Whole(nn.Module):
    """A loss that trains everything; the other outputs have draws of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, scale: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
        x = scale * tokens[:, None] / 64
        noisy = (self.first(x) + torch.randn(len(tokens), 16)).sin()
        mixed = nn.functional.dropout(noisy, 0.4) * self.second(x)
        late = nn.functional.dropout(self.second(mixed.cos()), 0.5).exp()
        return self.second(noisy).square().mean(), late, mixed.tanh(), late.view(-1)


class Broken(nn.Module):
    """Three graphs, each of which returns more than is used."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(16, 32), nn.Linear(32, 8), nn.Linear(32, 8)

    def forward(self, scale: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
        h = self.first(scale * tokens[:, None]).tanh()
        left, right = self.second(h), nn.functional.dropout(self.third(h), 0.3)
        torch._dynamo.graph_break()
        product = left.sin() * right
        torch._dynamo.graph_break()
        return (product * left).square().mean(), right, product, h * 2


class Residuals(nn.Module):
    """Gradients are added up in place, at residuals and where outputs meet; one output is a half of a product."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.blocks = nn.Linear(16, 16), nn.ModuleList([nn.Linear(16, 16) for _ in range(3)])
        self.norm, self.head, self.wide = nn.LayerNorm(16), nn.Linear(16, 64), nn.Linear(16, 32)

    def forward(self, scale: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
        h = z = self.first(scale).tanh()
        for block in self.blocks:
            z = z + block(self.norm(z)).sin()
        left, right = self.wide(h).chunk(2, 1)
        return nn.functional.cross_entropy(self.head(h), tokens), h, z, (left + h + z).cos() * right


def inputs(rows: int = 12) -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    return torch.randn(rows, 16, requires_grad=True), torch.randint(0, 64, (rows,))


def made(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return build()


USES: dict[str, Use] = {
    "loss": lambda out: out[0].backward(),
    "logits": lambda out: out[1].sin().sum().backward(),
    "other": lambda out: out[2].square().sum().backward(),
    "view": lambda out: out[3].square().sum().backward(),
    "loss and other": lambda out: (out[0] + out[2].sum()).backward(),
    "all": lambda out: torch.stack([each.square().sum() for each in out]).sum().backward(),
    "one after the other": lambda out: [each.sin().sum().backward(retain_graph=True) for each in out],
    "autograd.grad": lambda out: torch.autograd.grad(out[2].sum(), out[3], allow_unused=True),
}


def left_behind(model: nn.Module, use: Use, *, stay: bool = False, rows: int = 12) -> dict[str, Tensor | None]:
    """All gradients, None where there is none, buffers and the generator after one call and what is done with it.

    Gradients that are there before are gone, or `stay` to be added to.
    """
    given = inputs(rows)
    if not stay:
        model.zero_grad(set_to_none=True)
    torch.manual_seed(1)
    use(model(*given))
    found = {n: p.grad if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    found |= {"input": given[0].grad, "generator": torch.get_rng_state()}
    return found | {name: buffer.clone() for name, buffer in model.named_buffers()}


def differing(one: dict[str, Tensor | None], other: dict[str, Tensor | None]) -> list[str]:
    def same(a: Tensor | None, b: Tensor | None) -> bool:
        if a is None or b is None:
            return a is b
        return torch.equal(a, b) and torch.equal(a.signbit(), b.signbit())

    assert list(one) == list(other)
    return [name for name in one if not same(one[name], other[name])]


@functools.cache
def least_bytes(build: Callable[[], nn.Module]) -> int:
    """The least that its plan says it needs."""
    model = graphopt.optimize(made(build), "1GiB", example_inputs=inputs(), cost_model="roofline")
    least: int = model.graphopt.plan.minimum_bytes
    return least


ORDERS = [
    ("loss", "loss", "other", "loss", "logits", "view", "loss and other", "one after the other", "loss"),
    ("all", "other", "loss"),
    ("logits", "loss", "loss"),
    ("one after the other", "loss", "autograd.grad", "view"),
]


@pytest.mark.fast(1)
@pytest.mark.parametrize("tight", [False, True], ids=["everything kept", "at the minimum"])
@pytest.mark.parametrize("order", ORDERS, ids="+".join)
@pytest.mark.parametrize("build", [Heads, Whole, Broken, Residuals])
def test_gradients_and_nones_are_eagers_whatever_is_used(
    build: Callable[[], nn.Module], order: Sequence[str], tight: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget: Any = "1GiB"
    if tight:
        # a second backward takes more than the minimum, which would end in a BudgetError
        monkeypatch.setattr(loop, "watch_of", lambda *_: None)
        budget = least_bytes(build)
    model = graphopt.optimize(made(build), budget, example_inputs=inputs(), cost_model="roofline")
    eager = made(build)
    for number, name in enumerate(order):
        found, expected = left_behind(model, USES[name]), left_behind(eager, USES[name])
        assert differing(found, expected) == [], f"step {number}, {name}"


@pytest.mark.fast(1)
@pytest.mark.parametrize("build", [Heads, Whole, Broken, Residuals])
def test_gradients_that_stay_are_added_to_where_eager_does(build: Callable[[], nn.Module]) -> None:
    model, eager = graphopt.optimize(made(build), "1GiB", cost_model="roofline"), made(build)
    for number, name in enumerate(("loss", "loss", "loss", "other", "loss", "all", "logits", "loss", "view")):
        found, expected = (left_behind(each, USES[name], stay=True) for each in (model, eager))
        assert differing(found, expected) == [], f"step {number}, {name}"


@pytest.mark.parametrize("stay", [False, True], ids=["from nothing", "added to"])
@pytest.mark.parametrize("build", [Heads, Whole, Residuals])
def test_any_output_may_be_used_at_any_size(build: Callable[[], nn.Module], stay: bool) -> None:
    model, eager = graphopt.optimize(made(build), "1GiB", cost_model="roofline"), made(build)
    order = ("loss", "other", "logits", "view", "loss and other", "all", "one after the other", "view", "loss")
    for rows, name in zip((12, 9, 12, 7, 9, 11, 5, 9, 12), order, strict=True):
        found, expected = (left_behind(each, USES[name], stay=stay, rows=rows) for each in (model, eager))
        assert differing(found, expected) == [], f"{rows} rows, {name}"


class LossAndLogits(nn.Module):
    """A vocabulary that is large against the width."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.body, self.head = nn.Embedding(512, 16), nn.Linear(16, 16), nn.Linear(16, 512, bias=False)

    def forward(self, tokens: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.head(self.body(self.embedding(tokens)).tanh())
        return nn.functional.cross_entropy(logits, labels), logits


TOKENS = (torch.arange(256) % 512, torch.arange(256) * 7 % 512)
LOGITS_BYTES = 256 * 512 * 4


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("graphopt.")]


def measured(model: nn.Module, use: Use) -> int:
    model.zero_grad(set_to_none=True)

    def step() -> None:
        out = model(*TOKENS)
        use(out)

    peak = peak_bytes(step, [*model.parameters(), *TOKENS], "cpu")
    model.zero_grad(set_to_none=True)
    return peak


def test_the_minimum_has_no_gradient_of_the_logits_and_is_kept() -> None:
    model = graphopt.optimize(made(LossAndLogits), "1GiB", example_inputs=TOKENS)
    least = model.graphopt.plan.minimum_bytes
    (graph,) = model.graphopt.planned_graphs
    kinds = [value.kind for value in graph.captured.step.values]
    assert kinds.count("tangents") == 1
    model = graphopt.optimize(made(LossAndLogits), least, example_inputs=TOKENS)
    peak = measured(model, USES["loss"])
    assert abs(peak - model.graphopt.plan.peak_bytes) <= 2048 and peak <= least
    # logits, their log-probabilities and the gradients of both; a gradient of the output would be a fifth
    assert 4 * LOGITS_BYTES < peak < 4.5 * LOGITS_BYTES and peak <= measured(made(LossAndLogits), USES["loss"])


def test_a_wrong_guess_is_said_once_and_corrected(caplog: pytest.LogCaptureFixture) -> None:
    model = graphopt.optimize(made(LossAndLogits), "1GiB", example_inputs=TOKENS)
    guessed = model.graphopt.plan.peak_bytes
    with caplog.at_level(logging.WARNING, logger="graphopt"):
        for _ in range(3):
            model.zero_grad()
            model(*TOKENS)[1].sum().backward()
    said = messages(caplog)
    assert len(said) == 1 and "output 1" in said[0] and "above the plan" in said[0]
    assert model.graphopt.plan.peak_bytes != guessed
    assert measured(model, lambda out: out[1].sum().backward()) <= model.graphopt.plan.peak_bytes


def test_what_is_not_used_is_planned_for_no_more_from_the_second_call_on() -> None:
    model = graphopt.optimize(made(Heads), "1GiB", example_inputs=inputs())
    before = model.graphopt.plan
    for _ in range(2):
        model.zero_grad()
        model(*inputs())[0].backward()
    after = model.graphopt.plan
    assert after.peak_bytes < before.peak_bytes and len(model.graphopt.session.graphs) == 1
    for _ in range(2):
        model.zero_grad()
        model(*inputs())[0].backward()
    assert model.graphopt.plan == after


def test_decay_does_not_move_what_has_no_gradient() -> None:
    model, eager = graphopt.optimize(made(Heads), "1GiB"), made(Heads)
    for each in (model, eager):
        optimizer = torch.optim.AdamW(each.parameters(), lr=0.1, weight_decay=0.5)
        for _ in range(3):
            optimizer.zero_grad()
            torch.manual_seed(1)
            each(*inputs())[0].backward()
            optimizer.step()
    assert differing(dict(model.named_parameters()), dict(eager.named_parameters())) == []
    assert torch.equal(model.get_parameter("other.0.weight"), made(Heads).get_parameter("other.0.weight"))


def test_no_plan_for_more_outputs_keeps_the_last_one_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    free = graphopt.optimize(made(LossAndLogits), "1GiB", example_inputs=TOKENS)
    model = graphopt.optimize(made(LossAndLogits), free.graphopt.plan.minimum_bytes, example_inputs=TOKENS)
    eager = made(LossAndLogits)
    with caplog.at_level(logging.WARNING, logger="graphopt"):
        for _ in range(3):
            for each in (model, eager):
                each.zero_grad()
                loss, logits = each(*TOKENS)
                (loss + logits.square().sum()).backward()
            assert differing(*({n: p.grad for n, p in each.named_parameters()} for each in (model, eager))) == []
    assert [text.startswith("model: no plan") for text in messages(caplog)].count(True) == 1


@pytest.mark.fast(1)
@pytest.mark.parametrize("calls", [0, 3], ids=["planned from examples", "planned from what was used"])
def test_a_kept_plan_has_the_tangents_that_it_was_made_for(calls: int, tmp_path: Path) -> None:
    model = graphopt.optimize(made(Heads), "1GiB", example_inputs=inputs())
    for _ in range(calls):
        model.zero_grad()
        model(*inputs())[0].backward()
    plan = model.graphopt.plan
    plan.save(tmp_path / "plan.json")
    again = graphopt.optimize(made(Heads), plan=tmp_path / "plan.json", example_inputs=inputs())
    assert [graph.schedule for graph in again.graphopt.plan.graphs] == [graph.schedule for graph in plan.graphs]
    eager = made(Heads)
    for name in ("loss", "loss", "other", "all", "loss"):
        assert differing(left_behind(again, USES[name]), left_behind(eager, USES[name])) == []


@pytest.mark.fast(1)
@pytest.mark.parametrize("build", [Heads, Whole, Broken, Residuals])
def test_verification_holds_and_leaves_no_trace(build: Callable[[], nn.Module]) -> None:
    model = graphopt.optimize(made(build), "1GiB", example_inputs=inputs(), verify=True)
    plan = model.graphopt.plan
    use = USES["loss"]
    assert differing(left_behind(model, use), left_behind(made(build), use)) == []
    assert model.graphopt.plan.graphs == plan.graphs


def test_a_training_step_has_one_tangent_as_before() -> None:
    model, eager = made(Heads), made(Heads)
    step = graphopt.train_step(
        model, None, torch.optim.AdamW(model.parameters(), lr=0.1, fused=True), cost_model="roofline"
    )
    optimizer = torch.optim.AdamW(eager.parameters(), lr=0.1, fused=True)
    for _ in range(2):
        with graphopt.kernels.use("stock"):
            torch.manual_seed(1)
            step(*inputs())
        torch.manual_seed(1)
        optimizer.zero_grad()
        eager(*inputs())[0].backward()
        optimizer.step()
    assert differing(dict(model.named_parameters()), dict(eager.named_parameters())) == []

"""`numerics="reordered"` in real loops: language models below the floor of their logits, with gradients that hold."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

import graphopt
from graphopt.api.verify import verify_model
from graphopt.device.measure import peak_bytes
from graphopt.problem.pieces import WHOLE, Pieces

CLASSES, ROWS, LENGTH = 4096, 4, 48
#: Of 768 kB of logits for each row of the batch, 3.1 MB; parameters and gradients take 0.5 MB each.
BUDGET = 4_000_000
#: Units in the last place of a gradient's largest element, from float64's: what docs/numerics.md says.
ULPS = 32


class Language(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.body = nn.Embedding(CLASSES, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, CLASSES, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        logits = self.head(torch.tanh(self.body(self.embed(ids))))
        return F.cross_entropy(logits[:, :-1].reshape(-1, CLASSES), ids[:, 1:].reshape(-1), ignore_index=3)


def some_ids(seed: int = 0) -> torch.Tensor:
    return torch.randint(0, CLASSES, (ROWS, LENGTH), generator=torch.Generator().manual_seed(seed))


def exact_gradients(model: nn.Module, batches: list[torch.Tensor], factor: float = 1.0) -> list[torch.Tensor]:
    exact = copy.deepcopy(model).double()
    for ids in batches:
        (factor * exact(ids)).backward()
    return [parameter.grad for parameter in exact.parameters()]  # type: ignore[misc]


def check(model: nn.Module, exact: list[torch.Tensor]) -> None:
    for parameter, best in zip(model.parameters(), exact, strict=True):
        assert parameter.grad is not None
        unit = torch.finfo(torch.float32).eps * best.abs().max()
        assert (parameter.grad.double() - best).abs().max() <= ULPS * unit


def optimized(budget: int = BUDGET, **options: Any) -> tuple[Any, nn.Module]:
    plain = Language()
    model = graphopt.optimize(Language(), budget, example_inputs=some_ids(), numerics="reordered", **options)
    return model, plain


def test_gradients_and_peak() -> None:
    model, plain = optimized()
    plan = model.graphopt.plan
    assert plan.pieces[0].count > 1 and plan.numerics == "reordered"
    assert "numerics reordered" in str(model.graphopt.report)
    ids = some_ids()

    def step() -> None:
        model.zero_grad()
        (2.5 * model(ids)).backward()

    step()
    check(model, exact_gradients(plain, [ids], 2.5))
    model.zero_grad()
    measured = peak_bytes(step, [*model.parameters(), ids], torch.device("cpu"))
    assert measured <= plan.peak_bytes <= BUDGET < plan.eager_peak_bytes


def test_bitwise_says_what_would_fit() -> None:
    with pytest.raises(graphopt.BudgetError, match="numerics='reordered'") as raised:
        graphopt.optimize(Language(), BUDGET, example_inputs=some_ids())
    assert raised.value.minimum_bytes > BUDGET


def test_loops() -> None:
    """Two backwards, two forwards before them, evaluation between, and one backward twice."""
    model, plain = optimized(BUDGET + 2_000_000)
    one, other = some_ids(1), some_ids(2)
    model(one).backward()
    model(other).backward()  # adds to what is there
    check(model, exact_gradients(plain, [one, other]))
    model.zero_grad()
    first = model(one)
    model.eval()
    with torch.no_grad():
        assert torch.allclose(model(one), first)
    model.train()
    (first + model(other)).backward()
    check(model, exact_gradients(plain, [one, other]))
    model.zero_grad()
    loss = model(one)
    loss.backward(retain_graph=True)
    loss.backward()
    check(model, exact_gradients(plain, [one, one]))


def test_a_saved_plan_has_its_pieces(tmp_path: Path) -> None:
    model, plain = optimized()
    plan = model.graphopt.plan
    plan.save(tmp_path / "plan.json")
    again, _ = optimized(plan=tmp_path / "plan.json")
    assert again.graphopt.plan.pieces == plan.pieces != (WHOLE,)
    assert [graph.schedule for graph in again.graphopt.plan.graphs] == [graph.schedule for graph in plan.graphs]
    again(some_ids()).backward()
    check(again, exact_gradients(plain, [some_ids()]))
    with pytest.raises(graphopt.PlanMismatchError, match="numerics='reordered'"):
        graphopt.optimize(Language(), example_inputs=some_ids(), plan=tmp_path / "plan.json")


def test_other_shapes_are_right() -> None:
    model, plain = optimized(BUDGET + 4_000_000)
    for rows in (4, 3, 2):
        model.zero_grad()
        model(some_ids()[:rows]).backward()
        check(model, exact_gradients(plain, [some_ids()[:rows]]))


def test_verify_judges_by_float64() -> None:
    found = verify_model(Language(), some_ids(), None, mem_budget=BUDGET, numerics="reordered", time_rounds=0)
    assert found.equal and not found.bitwise


def test_room_for_everything_changes_no_bits() -> None:
    model, plain = optimized(10**9)
    assert model.graphopt.plan.pieces == (WHOLE,)
    model(some_ids()).backward()
    plain(some_ids()).backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


def test_logits_that_are_returned() -> None:
    """A model of transformers' returns logits beside its loss: they are whole, and what follows from them is not."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    plain = LlamaForCausalLM(LlamaConfig(vocab_size=CLASSES, use_cache=False, **sizes))
    inputs = {"input_ids": some_ids(), "labels": some_ids()}
    whole = graphopt.optimize(copy.deepcopy(plain), 10**9, example_kwargs=inputs).graphopt.plan
    model = copy.deepcopy(plain)
    graphopt.optimize(model, whole.minimum_bytes - 1_000_000, example_kwargs=inputs, numerics="reordered")
    assert model.graphopt.plan.pieces[0].count > 1  # type: ignore[union-attr]
    model(**inputs).loss.backward()
    exact = copy.deepcopy(plain).double()
    exact(**inputs).loss.backward()
    check(model, [parameter.grad for parameter in exact.parameters()])  # type: ignore[misc]
    model.zero_grad()
    out = model(**inputs)
    (out.loss + out.logits.square().mean()).backward()  # a tangent that nobody planned for
    exact.zero_grad()
    out = exact(**inputs)
    (out.loss + out.logits.square().mean()).backward()
    check(model, [parameter.grad for parameter in exact.parameters()])  # type: ignore[misc]


def test_backend() -> None:
    options = {"mem_budget": BUDGET, "numerics": "reordered"}
    model, plain = Language(), Language()
    torch.compile(model, backend="graphopt", options=options)(some_ids()).backward()
    check(model, exact_gradients(plain, [some_ids()]))


def test_names_are_checked() -> None:
    with pytest.raises(graphopt.UsageError, match="'bitwise' or 'reordered'"):
        graphopt.optimize(Language(), BUDGET, numerics="fast")  # type: ignore[arg-type]
    with pytest.raises(graphopt.UsageError, match="compiler='inductor'"):
        graphopt.optimize(Language(), BUDGET, numerics="reordered", compiler="inductor")


def test_pieces_as_text() -> None:
    assert [str(each) for each in (WHOLE, Pieces(4), Pieces(4, at_once=True))] == [
        "whole",
        "4 pieces",
        "4 pieces, gradients with the loss",
    ]


def test_shapes_whose_common_graph_does_not_fit_are_captured_each(caplog: pytest.LogCaptureFixture) -> None:
    """One graph for all shapes is whole, as its rows are not known."""
    model, plain = optimized()
    with caplog.at_level("INFO", "graphopt"):
        for length in (LENGTH, LENGTH - 5, LENGTH - 9, LENGTH, LENGTH - 5):
            ids = some_ids()[:, :length]
            model.zero_grad()
            model(ids).backward()
            check(model, exact_gradients(plain, [ids]))
            assert model.graphopt.plan.pieces[0].count > 1
    (said,) = [each for each in caplog.messages if "each shape is captured by itself" in each]
    assert "does not fit" in said
    assert all(step.measured_bytes <= BUDGET for step in model.graphopt.history)


def test_a_graph_for_all_shapes_that_was_asked_for_is_not_given_up() -> None:
    with pytest.raises(graphopt.BudgetError, match="dynamic=False, as a graph that serves many sizes"):
        optimized(dynamic=True)


def test_bitwise_does_not_go_by_shape(caplog: pytest.LogCaptureFixture) -> None:
    free = graphopt.optimize(Language(), "1GiB", example_inputs=some_ids()[:, :-5])
    budget = free.graphopt.plan.minimum_bytes
    model = graphopt.optimize(Language(), budget, example_inputs=some_ids()[:, :-5])
    with caplog.at_level("INFO", "graphopt"), pytest.raises(graphopt.BudgetError):
        model(some_ids())
    assert not [each for each in caplog.messages if "by itself" in each]

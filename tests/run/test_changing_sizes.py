"""One capture serves every shape: inside the budget, with eager's bits, at next to no cost for a new one."""

from __future__ import annotations

import copy
import gc
import logging
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import graphopt
from graphopt.base.errors import BudgetError, PlanMismatchError, UsageError
from graphopt.graph.joint import JointGraph
from graphopt.graph.numbers import is_symbol
from graphopt.passes.joint import CLEANING

F = nn.functional


class Tagger(nn.Module):
    """Words in, the loss of a label for each: dropout, attention, perhaps tied weights."""

    def __init__(self, layers: int = 2, tied: bool = True) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 32)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(32, 2, 64, dropout=0.1, batch_first=True) for _ in range(layers)
        )
        self.head = nn.Linear(32, 50)
        if tied:
            self.head.weight = self.words.weight

    def forward(self, words: Tensor, labels: Tensor) -> Tensor:
        hidden = self.words(words)
        for layer in self.layers:
            hidden = layer(hidden)
        return F.cross_entropy(self.head(hidden).flatten(0, 1), labels.flatten())


def batch(rows: int, length: int) -> tuple[Tensor, Tensor]:
    """Words and labels."""
    return torch.randint(0, 50, (rows, length)), torch.randint(0, 50, (rows, length))


def step(model: nn.Module, *inputs: Tensor, seed: int = 3) -> list[Tensor | None]:
    """Loss, gradients, and the generator afterwards."""
    torch.manual_seed(seed)
    loss = model(*inputs)
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters()), torch.get_rng_state()]


def is_as_eager(model: nn.Module, eager: nn.Module, *inputs: Tensor) -> bool:
    """Whether a step from no gradients has eager's bits."""
    for each in (model, eager):
        each.zero_grad()
    pairs = zip(step(model, *inputs), step(eager, *inputs), strict=True)
    return all(a is b or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)


def captures(model: nn.Module) -> int:
    """Graphs that were captured of a model and are still there."""
    return len(model.graphopt.session.graphs)  # type: ignore[union-attr, arg-type]


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.manual_seed(0)
    random.seed(0)
    yield


def test_all_shapes_of_a_run_take_two_captures_and_stay_inside_the_budget() -> None:
    model = Tagger()
    eager = copy.deepcopy(model)
    budget = 1_600_000
    graphopt.optimize(model, budget)
    shapes = [(4, 16), (4, 24), *((random.choice((2, 3, 4, 6, 8)), length) for length in range(8, 68, 2))]
    for rows, length in shapes:
        assert is_as_eager(model, eager, *batch(rows, length)), (rows, length)
        last = model.graphopt.history[-1]
        assert last.measured_bytes <= budget
        assert 0 <= last.predicted_bytes - last.measured_bytes < 16_384
    assert captures(model) == 2
    recomputed = [bool(graph.recomputed) for graph in model.graphopt.plan.graphs]
    assert is_as_eager(model, eager, *batch(8, 66)) and any(graph.recomputed for graph in model.graphopt.plan.graphs), (
        f"no shape was near its budget: {recomputed}"
    )


def test_a_shape_that_fits_in_no_way_says_so_and_others_go_on() -> None:
    model = Tagger()
    eager = copy.deepcopy(model)
    graphopt.optimize(model, 500_000)
    for rows, length in ((4, 8), (4, 12)):
        assert is_as_eager(model, eager, *batch(rows, length))
    with pytest.raises(BudgetError, match="is too small") as raised:
        model(*batch(16, 64))
    assert raised.value.minimum_bytes > 500_000
    assert is_as_eager(model, eager, *batch(5, 9))
    assert captures(model) == 2


def test_batch_and_length_that_happen_to_be_equal_need_not_stay_so() -> None:
    model = Tagger()
    eager = copy.deepcopy(model)
    graphopt.optimize(model, "64MiB")
    for rows, length in ((4, 8), (12, 12), (12, 7), (3, 12), (5, 5)):
        assert is_as_eager(model, eager, *batch(rows, length))
    assert captures(model) == 2


@pytest.mark.slow
def test_a_batch_of_one_row_is_one_more_capture() -> None:
    model = Tagger()
    eager = copy.deepcopy(model)
    graphopt.optimize(model, "64MiB")
    for rows, length in ((4, 8), (4, 9), (1, 9), (1, 12), (6, 12)):
        assert is_as_eager(model, eager, *batch(rows, length))
    assert captures(model) == 3


@pytest.mark.fast(1)
@pytest.mark.parametrize("dynamic", [True, {"batch": 0, "length": 1}], ids=["all", "named"])
def test_sizes_that_are_symbols_from_the_start_take_one_capture(dynamic: graphopt.api.optimize.Dynamic) -> None:
    model = Tagger()
    eager = copy.deepcopy(model)
    graphopt.optimize(model, "64MiB", dynamic=dynamic)
    for rows, length in ((4, 8), (5, 9), (3, 20)):
        assert is_as_eager(model, eager, *batch(rows, length))
    assert captures(model) == 1


@pytest.mark.slow
def test_no_size_is_a_symbol_where_that_was_asked_for() -> None:
    model = Tagger()
    eager = copy.deepcopy(model)
    graphopt.optimize(model, "64MiB", dynamic=False)
    for rows, length in ((4, 8), (5, 9), (3, 20)):
        assert is_as_eager(model, eager, *batch(rows, length))
    assert captures(model) == 3


@pytest.mark.parametrize("dynamic", ["batch", 1, {"batch": -1}, {"batch": "0"}, {"a": 0, "b": 0}, [0, 1]])
def test_what_is_no_choice_of_sizes_is_refused(dynamic: object) -> None:
    with pytest.raises(UsageError, match="dynamic: expected"):
        graphopt.optimize(Tagger(), "1GiB", dynamic=dynamic)  # type: ignore[arg-type]


def test_gradients_of_batches_of_several_shapes_are_summed_as_in_eager() -> None:
    model = Tagger()
    eager = copy.deepcopy(model)
    graphopt.optimize(model, 1_600_000)
    optimizers = [torch.optim.SGD(each.parameters(), 0.1, momentum=0.9) for each in (model, eager)]
    for window in range(4):
        shapes = [(random.choice((2, 3, 4)), random.randint(8, 40)) for _ in range(3)]
        inputs = [batch(*shape) for shape in shapes]
        for each, optimizer in zip((model, eager), optimizers, strict=True):
            optimizer.zero_grad(set_to_none=window % 2 == 0)
            for position, micro in enumerate(inputs):
                torch.manual_seed(position)
                (each(*micro) / 3).backward()
            optimizer.step()
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), eager.parameters(), strict=True))
    assert captures(model) <= 2
    assert all(step.measured_bytes <= 1_600_000 for step in model.graphopt.history)


@pytest.mark.slow
def test_two_forwards_of_other_shapes_wait_for_one_backward() -> None:
    model = Tagger(tied=False)  # of a parameter that is used twice, eager sums up four gradients in another order
    eager = copy.deepcopy(model)
    graphopt.optimize(model, "8MiB")
    for lengths in ((8, 12), (16, 20), (9, 30), (30, 9)):
        inputs = [batch(3, length) for length in lengths]
        for each in (model, eager):
            each.zero_grad()
            torch.manual_seed(1)
            (each(*inputs[0]) + 2 * each(*inputs[1])).backward()
        assert all(torch.equal(a.grad, b.grad) for a, b in zip(model.parameters(), eager.parameters(), strict=True))
        assert model.graphopt.history[-1].measured_bytes <= 8 * 2**20


@pytest.mark.slow
def test_a_backward_is_that_of_its_forward_though_its_code_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphopt.emit.many_schedules.MOST_SCHEDULES", 1)
    model = Tagger(tied=False)
    eager = copy.deepcopy(model)
    graphopt.optimize(model, 1_050_000)
    inputs = {length: batch(4, length) for length in (10, 16, 44)}
    for length in (10, 16, 44):
        assert is_as_eager(model, eager, *inputs[length])
    assert model.graphopt.plan.recomputed, "the long batch has a schedule of its own"
    for each in (model, eager):
        each.zero_grad()
        torch.manual_seed(1)
        losses = [each(*inputs[length]) for length in (44, 16)]
        losses[0].backward()
        losses[1].backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(model.parameters(), eager.parameters(), strict=True))


class Broken(Tagger):
    """The same, whose graph ends in the middle."""

    def forward(self, words: Tensor, labels: Tensor) -> Tensor:
        hidden = self.layers[0](self.words(words))
        torch._dynamo.graph_break()
        hidden = self.layers[1](hidden)
        return F.cross_entropy(self.head(hidden).flatten(0, 1), labels.flatten())


@pytest.mark.slow
def test_the_pieces_of_a_model_that_breaks_serve_all_shapes() -> None:
    model = Broken()
    eager = copy.deepcopy(model)
    graphopt.optimize(model, 1_600_000)
    for rows, length in ((4, 16), (4, 24), (3, 30), (8, 40), (2, 9), (8, 56)):
        assert is_as_eager(model, eager, *batch(rows, length)), (rows, length)
        assert model.graphopt.history[-1].measured_bytes <= 1_600_000
    assert captures(model) <= 5


class Cut(nn.Module):
    """Reads as many columns as a number of its own says, which is no size of an input."""

    def __init__(self) -> None:
        super().__init__()
        self.columns, self.line = 8, nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.line(x[:, : self.columns])).square().sum()


def test_sizes_that_follow_from_numbers_are_planned_value_by_value() -> None:
    model = Cut()
    eager = copy.deepcopy(model)
    graphopt.optimize(model, "64MiB")
    for columns, length in ((8, 16), (8, 20), (12, 20), (12, 24), (6, 30)):
        model.columns = eager.columns = columns
        assert is_as_eager(model, eager, torch.randn(64, length, 16)), (columns, length)
        last = model.graphopt.history[-1]
        assert 0 <= last.predicted_bytes - last.measured_bytes < 16_384


class Choosing(nn.Module):
    """Takes another way where the input is long, and counts its tokens in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.short, self.long, self.scale = nn.Linear(8, 8), nn.Linear(8, 8), 0.0

    def forward(self, x: Tensor) -> Tensor:
        line = self.long if x.shape[1] > 20 else self.short
        return (line(x).tanh() / x.shape[1]).sum() * (1 + 1 / x.size(0))


def test_sizes_in_python_decide_and_enter_arithmetic_as_in_eager() -> None:
    model = Choosing()
    eager = copy.deepcopy(model)
    graphopt.optimize(model, "64MiB")
    for rows, length in ((4, 8), (4, 12), (7, 30), (7, 40), (5, 19), (3, 21), (9, 20)):
        assert is_as_eager(model, eager, torch.randn(rows, length, 8)), (rows, length)
    assert captures(model) <= 3


class Unrolled(nn.Module):
    """A loop over steps, in Python: its length is a constant of a capture."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        hidden = x.new_zeros(x.shape[0], 8)
        for t in range(x.shape[1]):
            hidden = torch.tanh(self.cell(torch.cat((x[:, t], hidden), 1)))
        return hidden.square().mean()


def test_a_loop_over_a_size_is_captured_for_each_length_and_serves_all_batches() -> None:
    model = Unrolled()
    eager = copy.deepcopy(model)
    graphopt.optimize(model, "64MiB")
    for rows, length in ((4, 3), (4, 4), (6, 4), (9, 4), (5, 3), (7, 3)):
        assert is_as_eager(model, eager, torch.randn(rows, length, 8)), (rows, length)
    assert captures(model) <= 4


@pytest.mark.slow
def test_every_kind_of_call_of_a_dynamic_model_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    model = Tagger()
    graphopt.optimize(model, "64MiB")
    with caplog.at_level(logging.INFO, logger="graphopt"):
        for rows, length in ((4, 8), (4, 9), (5, 10), (5, 10), (4, 9)):
            model.zero_grad()
            step(model, *batch(rows, length))
    assert sum("captured anew" in record.message for record in caplog.records) == 1
    assert sum("planned 1 graph" in record.message for record in caplog.records) == 3


def test_what_decides_on_a_size_stands_in_the_report(caplog: pytest.LogCaptureFixture) -> None:
    model = Choosing()
    graphopt.optimize(model, "64MiB")
    with caplog.at_level(logging.INFO, logger="graphopt"):
        for rows, length in ((4, 8), (4, 12), (7, 30)):
            step(model, torch.randn(rows, length, 8))
    (condition,) = model.graphopt.report.size_conditions
    assert condition.startswith("args[0].size(1) > 20, for ") and "x.shape[1] > 20" in condition
    assert "test_changing_sizes.py" in condition and condition in " ".join(r.message for r in caplog.records)
    assert "x.shape[1] > 20" in " ".join(str(model.graphopt.report).split())


@pytest.mark.slow
def test_what_cannot_be_traced_with_symbols_is_captured_shape_by_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(joint: JointGraph) -> bool:
        if any(is_symbol(node.meta["val"]) for node in joint.primals):
            raise NotImplementedError("no symbols here")
        return False

    passes = tuple(replace(each, run=refuse) if each.name == "sizes_from_inputs" else each for each in CLEANING)
    monkeypatch.setattr("graphopt.capture.capture_graph.CLEANING", passes)
    model = Tagger(1)
    eager = copy.deepcopy(model)
    graphopt.optimize(model, "64MiB")
    for rows, length in ((4, 8), (4, 12), (5, 12), (5, 14)):
        assert is_as_eager(model, eager, *batch(rows, length))
        assert not any(graph.sizes for graph in model.graphopt.plan.graphs)
    assert captures(model) == 4
    assert "no symbols here" in model.graphopt.report.size_conditions[-1]


@pytest.mark.slow
def test_eval_in_between_and_verification_of_a_shape_that_came_later() -> None:
    model = Tagger()
    eager = copy.deepcopy(model)
    graphopt.optimize(model, 1_600_000)
    for rows, length in ((4, 8), (4, 20), (6, 31)):
        assert is_as_eager(model, eager, *batch(rows, length))
        model.eval(), eager.eval()
        inputs = batch(3, 17)
        with torch.no_grad():
            assert torch.equal(model(*inputs), eager(*inputs))
        model.train(), eager.train()
    graphopt.verify.compare.compare_with_eager(model.graphopt.session, batch(5, 33), {})


@pytest.mark.slow
def test_the_report_says_what_sizes_a_plan_serves_and_a_kept_plan_serves_them_again(tmp_path: Path) -> None:
    model = Tagger()
    eager = copy.deepcopy(model)
    graphopt.optimize(model, 1_600_000)
    for rows, length in ((4, 16), (4, 40), (6, 40), (6, 50)):
        assert is_as_eager(model, eager, *batch(rows, length))
    plan = model.graphopt.plan
    assert set(plan.sizes) == {f"args[{i}].size({d})" for i in (0, 1) for d in (0, 1)}
    assert plan.sizes["args[0].size(1)"][1] == 50
    assert "args[0].size(1)" in str(model.graphopt.report)
    plan.save(tmp_path / "plan.json")

    again = graphopt.optimize(copy.deepcopy(eager), plan=tmp_path / "plan.json")
    for rows, length in ((6, 50), (3, 20), (4, 40)):
        assert is_as_eager(again, eager, *batch(rows, length))
        assert again.graphopt.history[-1].measured_bytes <= 1_600_000
    assert captures(again) == 1
    assert again.graphopt.plan.planner == plan.planner
    assert is_as_eager(again, eager, *batch(1, 30)), "what the plan does not have is planned, once it was in force"
    assert captures(again) == 2

    with pytest.raises(PlanMismatchError, match="made for another graph"):
        graphopt.optimize(Tagger(3), plan=tmp_path / "plan.json")(*batch(4, 16))


class Images(nn.Module):
    """A convolution, whose images change in height and in width."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.convolution(x)).square().mean()


def test_images_take_two_captures_whichever_side_changes_first() -> None:
    model = Images()
    eager = copy.deepcopy(model)
    graphopt.optimize(model, "64MiB")
    for rows, height, width in ((2, 8, 8), (2, 10, 8), (2, 10, 12), (3, 9, 7), (5, 16, 16)):
        assert is_as_eager(model, eager, torch.randn(rows, 3, height, width))
    assert captures(model) == 2


class OfSizes(nn.Module):
    """What `made` makes of a line's output."""

    def __init__(self, made: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.line, self.made = nn.Linear(16, 16), made

    def forward(self, x: Tensor) -> Tensor:
        return self.made(self.line(x))


#: Arithmetic on sizes that PyTorch follows with symbols.
FOLLOWED: dict[str, Callable[[Tensor], Tensor]] = {
    "logarithm": lambda h: h.sum() * math.log(h.shape[1]),
    "exponential": lambda h: h.sum() * math.exp(-h.shape[1]),
    "sine": lambda h: h.sum() * math.sin(h.shape[1]),
    "half": lambda h: h[:, : int(h.shape[1] * 0.5)].square().sum(),
    "a third of them": lambda h: h.flatten(1).topk(int(h.shape[1] * 0.3), 1)[0].sum(),
    "at least one": lambda h: h.sum() / max(1.0, h.shape[1] / 10),
}
#: What it takes no symbol for.
BY_ITSELF: dict[str, Callable[[Tensor], Tensor]] = {
    "cumulative product": lambda h: h.cumprod(1).sum(),
    "interpolation": lambda h: F.interpolate(h, size=h.shape[2] // 2).square().sum(),
}


@pytest.mark.fast(1)
@pytest.mark.parametrize("name", [*FOLLOWED, *BY_ITSELF])
def test_whatever_becomes_of_sizes_bits_are_eagers(name: str) -> None:
    model = OfSizes((FOLLOWED | BY_ITSELF)[name])
    eager = copy.deepcopy(model)
    graphopt.optimize(model, "64MiB")
    shapes = ((4, 16), (4, 24), (3, 17), (5, 9))
    for rows, length in shapes:
        assert is_as_eager(model, eager, torch.randn(rows, length, 16)), (rows, length)
    assert captures(model) == 2 if name in FOLLOWED else captures(model) > 2 and model.graphopt.report.size_conditions


class Strided(nn.Module):
    """A graph that begins behind a break, with every second step."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.line(x)
        torch._dynamo.graph_break()
        return F.gelu(self.line(hidden[:, ::2])).square().sum()


def test_what_planning_asks_of_the_sizes_of_a_piece_is_guarded() -> None:
    model = Strided()
    eager = copy.deepcopy(model)
    graphopt.optimize(model, "64MiB")
    for rows, length in ((4, 16), (4, 24), (3, 17), (5, 9)):
        assert is_as_eager(model, eager, torch.randn(rows, length, 16)), (rows, length)


@pytest.mark.slow
def test_memory_does_not_grow_with_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphopt.run.calls.plans.MOST_CALLS", 8)
    model = Tagger(1)
    eager = copy.deepcopy(model)
    graphopt.optimize(model, "64MiB")
    counts = []
    for length in range(8, 80, 2):
        assert is_as_eager(model, eager, *batch(3, length))
        if length >= 40 and length % 20 == 0:
            gc.collect()
            counts.append(sum(isinstance(each, torch.fx.Node) for each in gc.get_objects()))
    plans = model.graphopt.session._plans
    assert max(len(graph.compiled) for graph in model.graphopt.session.graphs) <= 9
    assert counts[-1] <= counts[0] * 1.1, counts
    assert is_as_eager(model, eager, *batch(3, 8)), plans

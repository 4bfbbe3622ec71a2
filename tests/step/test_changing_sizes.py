"""A training step at changing sizes: one capture serves them, each is planned for itself, and bits are eager's."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.fx.experimental.symbolic_shapes import free_symbols
from torch.nn import functional as F

import graphopt
from graphopt.base.errors import BudgetError, UsageError
from graphopt.device.measure import peak_bytes
from graphopt.step import train_step
from graphopt.step.micro_batches import micro
from graphopt.step.micro_batches.micro_graph import Micro
from tests.support.loops import Batch, EagerLoop, MakeOptimizer, Pair, state_of
from tests.support.models import seeded
from tests.support.zoo import differences

WORDS, WIDTH = 50, 32
#: Thirty lengths, each in a batch of one of five sizes.
SHAPES = [((4, 6, 3, 8, 2)[number % 5], 6 + 3 * number) for number in range(30)]


class Language(nn.Module):
    """Tokens in, the same weights out, with dropout in between."""

    def __init__(self, layers: int = 1) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WORDS, bias=False)
        self.head.weight = self.embedding.weight
        each = (WIDTH, 2, 64, 0.1)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(*each, batch_first=True) for _ in range(layers))

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x)
        return F.cross_entropy(self.head(x).flatten(0, 1), labels.flatten())


class UnderAutocast(Language):
    """As a training step with `autocast` calls it."""

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(ids, labels)


@dataclass
class CutAsFirst(EagerLoop):
    """Its micro-batches have as many rows as those of the first batch, the last one perhaps fewer."""

    micro_rows: int = 0

    def parts(self, batch: Batch) -> list[tuple[float, Batch]]:
        if self.accumulate == 1:
            return [(1.0, batch)]
        ((ids, labels), _) = batch
        self.micro_rows = self.micro_rows or -(-len(ids) // self.accumulate)
        cut = zip(ids.split(self.micro_rows), labels.split(self.micro_rows), strict=True)
        return [(len(one[0]) / len(ids), (one, {})) for one in cut]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def adamw(parameters: Any) -> optim.Optimizer:
    return optim.AdamW(parameters, 1e-3, fused=True)


def batch(rows: int, length: int) -> Batch:
    generator = torch.Generator().manual_seed(rows * length)
    ids, labels = (torch.randint(0, WORDS, (rows, length), generator=generator) for _ in range(2))
    return (ids, labels), {}


def pair_of(budget: Any = None, make: MakeOptimizer = adamw, **options: Any) -> Pair:
    of_step = {key: options.pop(key) for key in ("autocast", "update_in_backward") if key in options}
    model, twin = seeded(Language)(), seeded(UnderAutocast if "autocast" in of_step else Language)()
    step = graphopt.train_step(model, None, make(model.parameters()), budget, **options, **of_step)
    return Pair(step, CutAsFirst(twin, make(twin.parameters()), **options))


def captures(caplog: pytest.LogCaptureFixture) -> int:
    return 1 + sum("captured anew" in record.message for record in caplog.records)


def plans(caplog: pytest.LogCaptureFixture) -> int:
    return sum("planned a micro-batch" in record.message for record in caplog.records)


def room_for(share: float) -> int:
    """Bytes between the least for the largest shape, and what eager takes for it."""
    model, largest = Language(), max(SHAPES, key=lambda shape: shape[0] * shape[1] ** 2)
    plan = graphopt.train_step(model, None, adamw(model.parameters()), example_inputs=batch(*largest)[0]).plan
    return int(plan.minimum_bytes + share * (plan.eager_peak_bytes - plan.minimum_bytes))


@pytest.mark.slow
def test_one_capture_serves_thirty_lengths_and_five_batch_sizes(caplog: pytest.LogCaptureFixture) -> None:
    budget = room_for(0.3)
    caplog.clear()
    with caplog.at_level(logging.INFO, "graphopt"):
        pair = pair_of(budget)
        pair.run([batch(*shape) for shape in SHAPES])
        assert captures(caplog) <= 2 and plans(caplog) == len(SHAPES)
        pair.run([batch(*shape) for shape in reversed(SHAPES)])
    # the first shape comes to the graph that serves all for the first time
    assert captures(caplog) <= 2 and plans(caplog) <= len(SHAPES) + 1, "a shape that came before was planned anew"
    assert pair.differences() == {}
    steps = pair.step.history
    assert len(steps) == 2 * len(SHAPES)
    assert all(step.measured_bytes <= step.predicted_bytes <= budget for step in steps)
    # what the plan counts besides are the few numbers that a loop makes around the step
    assert all(step.predicted_bytes - step.measured_bytes <= 512 for step in steps)
    recomputed = [len(set(each.planned.schedule)) < len(each.planned.schedule) for each in pair.step._memory.planned]
    assert any(recomputed) and not all(recomputed)


def test_the_peak_at_each_size_is_what_the_profiler_sees() -> None:
    step = pair_of(room_for(0.2)).step
    optimizer, model = step.optimizer, step.model
    for shape in (SHAPES[3], SHAPES[0], SHAPES[28], SHAPES[9], SHAPES[25]):
        given, _ = batch(*shape)
        step(*given)
        state = [value for entry in optimizer.state.values() for value in entry.values()]
        measured = peak_bytes(partial(step, *given), [*model.parameters(), *given, *state], "cpu")
        last = step.history[-1]
        assert last.measured_bytes == measured <= last.predicted_bytes <= step.plan.budget_bytes


OPTIONS: dict[str, dict[str, Any]] = {
    "accumulate": {"accumulate": 2},
    "clipped and scaled": {
        "accumulate": 3,
        "clip": graphopt.ClipNorm(1e9),
        "loss_scale": graphopt.DynamicLossScale(2.0**16, interval=2),
    },
    "clipped by value": {"clip": graphopt.ClipValue(1e-3)},
    "autocast": {"autocast": torch.bfloat16},
    "updated in the backward": {"update_in_backward": True},
    "the optimizer's own step": {"make": lambda p: optim.RMSprop(p, 1e-3), "accumulate": 2},
}


@pytest.mark.fast(1)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_bits_are_eagers_at_all_sizes(options: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    shapes = [(6, 7), (6, 10), (5, 12), (8, 5), (7, 9), (6, 7), (11, 6), (4, 31)]
    with caplog.at_level(logging.INFO, "graphopt"):
        pair = pair_of(**options)
        pair.run([batch(*shape) for shape in shapes])
    assert pair.differences() == {}
    # torch takes no symbol for 1, and here a last micro-batch of one row comes
    assert captures(caplog) <= 3
    assert all(step.measured_bytes <= step.predicted_bytes for step in pair.step.history)


def test_windows_of_other_lengths_and_with_a_short_end_are_planned_in_the_budget() -> None:
    free = pair_of(accumulate=2)
    free.run([batch(8, 40)])
    least, most = free.step.plan.minimum_bytes, free.step.plan.eager_peak_bytes
    budget = (least + most) // 2
    pair = pair_of(budget, accumulate=2)
    # 4 rows at a time
    pair.run([batch(rows, length) for rows, length in ((8, 20), (7, 40), (15, 12), (6, 31), (22, 40), (10, 40))])
    assert pair.differences() == {}
    assert all(step.measured_bytes <= step.predicted_bytes <= budget for step in pair.step.history)
    assert any(each.planned.plan.recomputed for each in pair.step._memory.planned)


def test_what_is_kept_does_not_grow_with_the_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(micro, "MOST_GRAPHS", 4)
    monkeypatch.setattr(train_step, "MOST_GRAPHS", 4)
    model = seeded(Language)()
    step = graphopt.train_step(model, None, adamw(model.parameters()), cost_model="roofline")
    micros: weakref.WeakSet[Micro] = weakref.WeakSet()
    for shape in SHAPES[:12]:
        step(*batch(*shape)[0])
        micros |= weakref.WeakSet(step._last_micros)
        assert len(step._memory.planned) <= 4
        assert len(step._windows) <= 4
    gc.collect()
    assert len(micros) <= 4
    (known,) = step.division._micros.values()
    assert len(known._graphs) == 2
    assert len(step.plan.graphs) <= 2


@pytest.mark.slow
def test_sizes_that_do_not_fit_tie_none_of_the_others() -> None:
    budget = room_for(0.0) // 2
    pair = pair_of(budget)
    pair.run([batch(2, 8), batch(4, 9)])
    with pytest.raises(BudgetError, match=r"a micro-batch of about \d instead of 8"):
        pair.step(*batch(8, 93)[0])
    assert str(pair.step.report)
    pair.loop.optimizer.zero_grad()
    pair.run([batch(3, 12), batch(2, 15), batch(4, 11)])
    assert pair.differences() == {}
    assert all(0 <= step.predicted_bytes - step.measured_bytes <= 512 for step in pair.step.history)


def test_parts_of_larger_tensors_are_served_by_one_graph_too(caplog: pytest.LogCaptureFixture) -> None:
    """The inputs are all words but the last, the targets all but the first."""
    with caplog.at_level(logging.INFO, "graphopt"):
        pair = pair_of(accumulate=2)
        for shape in ((4, 7), (4, 10), (6, 13), (7, 9), (5, 11)):
            ((ids, _), _) = batch(*shape)
            pair.run([((ids[:, :-1], ids[:, 1:]), {})])
    assert pair.differences() == {}
    assert captures(caplog) <= 3


@pytest.mark.fast(1)
@pytest.mark.parametrize(("dynamic", "expected"), [(True, 1), ({"rows": 0, "words": 1}, 1), (False, 4)])
def test_sizes_are_symbols_as_was_asked_for(dynamic: Any, expected: int, caplog: pytest.LogCaptureFixture) -> None:
    model = seeded(Language)()
    with caplog.at_level(logging.INFO, "graphopt"):
        step = graphopt.train_step(model, None, adamw(model.parameters()), cost_model="roofline", dynamic=dynamic)
        for shape in SHAPES[:4]:
            step(*batch(*shape)[0])
    assert captures(caplog) == expected
    sizes = step.plan.sizes
    assert sizes == ({} if dynamic is False else {"args[0].size(0)": (3, 8), "args[0].size(1)": (6, 15)} | sizes)


def test_what_is_no_choice_of_sizes_is_refused() -> None:
    model = Language()
    optimizer = adamw(model.parameters())
    with pytest.raises(UsageError, match="a name for each dimension"):
        graphopt.train_step(model, None, optimizer, dynamic={"rows": -1})
    with pytest.raises(UsageError, match="does not go with compiler='inductor'"):
        graphopt.train_step(model, None, optimizer, compiler="inductor", dynamic=True)


class Counts(nn.Module):
    """Keeps sizes, and what follows from them, in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.tokens, self.shape, self.ratio, self.doubled = nn.Linear(8, 8), 0, (0,), 0.0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.tokens += x.shape[0] * x.shape[1]
        self.shape, self.ratio = tuple(x.shape), x.shape[1] / x.shape[0]
        x = torch.cat([self.layer(x)] * 2, 1)
        self.doubled = x.shape[1] + x.numel()
        return x.square().mean()


def test_sizes_that_a_model_keeps_are_those_of_the_call() -> None:
    model, twin = seeded(Counts)(), seeded(Counts)()
    step = graphopt.train_step(model, None, optim.SGD(model.parameters(), 0.1), cost_model="roofline")
    loop = EagerLoop(twin, optim.SGD(twin.parameters(), 0.1))
    for rows, length in ((2, 3), (4, 5), (3, 7), (6, 2), (2, 3), (5, 9)):
        x = torch.randn(rows, length, 8)
        with graphopt.kernels.use("stock"):
            assert torch.equal(step(x).loss, loop(x)[0])
        kept = [(each.tokens, each.shape, each.ratio, each.doubled) for each in (model, twin)]
        assert kept[0] == kept[1]
    assert differences(state_of(model, step.optimizer), state_of(twin, loop.optimizer)) == {}


@torch.library.custom_op("graphopt_tests::derivative_takes_no_symbol", mutates_args=())
def derivative_takes_no_symbol(x: Tensor) -> Tensor:
    """Twice."""
    return x * 2


@derivative_takes_no_symbol.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def _derivative(_: Any, gradient: Tensor) -> Tensor:
    if any(map(free_symbols, gradient.shape)):
        raise TypeError("no symbols")
    return gradient * 2


derivative_takes_no_symbol.register_autograd(_derivative)


@pytest.mark.slow
def test_what_cannot_be_traced_with_symbols_is_captured_shape_by_shape(caplog: pytest.LogCaptureFixture) -> None:
    class Doubled(Language):
        def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
            return derivative_takes_no_symbol(super().forward(ids, labels).expand(len(ids))).mean()

    model, twin = seeded(Doubled)(), seeded(Doubled)()
    step = graphopt.train_step(model, None, adamw(model.parameters()), cost_model="roofline")
    with caplog.at_level(logging.INFO, "graphopt"):
        pair = Pair(step, EagerLoop(twin, adamw(twin.parameters())))
        pair.run([batch(*shape) for shape in (*SHAPES[:3], SHAPES[1])])
    assert pair.differences() == {}
    assert captures(caplog) == 3
    assert sum("sizes cannot be symbols" in record.message for record in caplog.records) == 1


@pytest.mark.slow
def test_ways_to_cut_a_batch_are_tried_with_one_graph(caplog: pytest.LogCaptureFixture) -> None:
    model = seeded(Language)()
    with caplog.at_level(logging.INFO, "graphopt"):
        budget = room_for(0.1)
        caplog.clear()
        step = graphopt.train_step(model, None, adamw(model.parameters()), budget, accumulate="auto")
        for rows, length in ((16, 93), (16, 60), (13, 80)):
            step(*batch(rows, length)[0])
    assert step.micro_batch_size < 16
    # a batch that is not cut; the first micro-batch; those of other sizes; that of one row
    assert captures(caplog) <= 4 < plans(caplog)
    assert all(each.measured_bytes <= each.predicted_bytes <= budget for each in step.history)

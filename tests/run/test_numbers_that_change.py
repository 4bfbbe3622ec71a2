"""Python numbers that change from call to call: inputs of the plan after the first change, with eager's bits."""

from __future__ import annotations

import copy
import gc
import logging
import math
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

import graphopt
from graphopt.capture import captures
from graphopt.run import session
from graphopt.run.graphs import met_graph
from graphopt.run.graphs.dynamo_graph import DynamoGraph
from tests.support.residual_blocks import same_gradients

F = nn.functional
#: What is done with a tensor and the numbers of a module.
Work = Callable[[torch.Tensor, Any], torch.Tensor]


class Numbers(nn.Module):
    """Its numbers are `n` and `t`; what it does with them is given."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.layer, self.work, self.n, self.t = nn.Linear(8, 8), work, 1, 0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.work(self.layer(x), self).square().mean()


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.n = nn.Linear(8, 8), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.n += 1
        return (self.layer(x) / self.n).square().sum()


class Parent(nn.Module):
    """The counter is a child's."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.child = nn.Linear(8, 8), Counts()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.child(self.layer(x)) * self.child.n


class Decays(nn.Module):
    """A float that the forward itself changes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.momentum = nn.Linear(8, 8), 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.momentum = self.momentum * 0.9 + 0.05
        return (self.layer(x) * self.momentum).square().mean()


class Arguments(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, scale: float, shift: int = 3) -> torch.Tensor:
        return (self.layer(x) * scale + shift).square().mean()


class Broken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.n, self.t = nn.Linear(8, 8), nn.Linear(8, 8), 0, 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.n += 1
        h = F.leaky_relu(self.a(x) / self.n, self.t)
        torch._dynamo.graph_break()
        self.t = self.t * 0.9
        return (self.b(h) * self.t * self.n).square().mean()


def counts(model: nn.Module, x: torch.Tensor, _: int) -> torch.Tensor:
    return model(x)


def float_argument(model: nn.Module, x: torch.Tensor, step: int) -> torch.Tensor:
    return model(x, 0.1 * step)


def int_argument(model: nn.Module, x: torch.Tensor, step: int) -> torch.Tensor:
    return model(x, 0.5, shift=step)


def both_arguments(model: nn.Module, x: torch.Tensor, step: int) -> torch.Tensor:
    return model(x, scale=1.0 / (1 + step), shift=step)


@contextmanager
def plannings(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], int]]:
    """How often something was planned so far."""
    with caplog.at_level(logging.INFO, logger="graphopt"):
        yield lambda: sum(record.message.startswith("planned ") for record in caplog.records)


def trained(model: nn.Module, call: Callable[[nn.Module], torch.Tensor], seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    loss = call(model)
    loss.backward()
    return loss.detach()


def optimized(model: nn.Module) -> nn.Module:
    return graphopt.optimize(model, "1MiB", cost_model="roofline")


def pair(
    model: nn.Module, dtype: torch.dtype = torch.float32, dynamic: bool | None = None
) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """The model optimized, as it is, and an input."""
    torch._dynamo.reset()  # it knows numbers that changed by the code that reads them
    torch.manual_seed(0)
    model, x = model.to(dtype), torch.randn(16, 8, dtype=dtype)
    eager = copy.deepcopy(model)
    return graphopt.optimize(model, "1MiB", cost_model="roofline", dynamic=dynamic), eager, x


@pytest.mark.fast(5)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("model", "step", "plans"),
    [
        (Counts, counts, 2),
        (Parent, counts, 2),
        (Decays, counts, 2),
        (Arguments, float_argument, 2),
        (Arguments, int_argument, 2),
        (Arguments, both_arguments, 2),
        # the second half's number has not changed yet where the first one's has
        (Broken, counts, 3),
    ],
)
def test_a_number_is_planned_for_once_it_changed(
    model: type[nn.Module],
    step: Callable[[nn.Module, torch.Tensor, int], torch.Tensor],
    plans: int,
    dtype: torch.dtype,
    caplog: pytest.LogCaptureFixture,
) -> None:
    optimized_model, eager, x = pair(model(), dtype)
    with plannings(caplog) as made:
        for i in range(8):
            losses = []
            for each in (optimized_model, eager):
                each.zero_grad()
                losses.append(trained(each, lambda each, i=i: step(each, x, i)))
            assert torch.equal(*losses)
            assert same_gradients(optimized_model, eager)
        assert made() == plans
    for name in ("n", "momentum", "t"):
        assert getattr(optimized_model, name, None) == getattr(eager, name, None)


WORK = {
    "scale": lambda x, m: x * m.t + m.n,
    "divisor": lambda x, m: x / (m.t + m.n),
    "alpha": lambda x, m: x.add(x.sin(), alpha=m.t),
    "slope": lambda x, m: F.leaky_relu(x, m.t),
    "bounds": lambda x, m: x.clamp(-m.t, m.t),
    "threshold": lambda x, m: torch.where(x > m.t, x, x * 0.5),
    "temperature": lambda x, m: F.softmax(x / max(m.t, 0.1), -1),
    "bias correction": lambda x, m: x / (1 - 0.9**m.n),
    "cosine": lambda x, m: x * (1 + math.cos(math.pi * m.t)) / 2,
    "annealed": lambda x, m: F.leaky_relu(x, 1 - math.exp(-5 * m.n / 100)),
    "exponential": lambda x, m: x * math.exp(-m.t) / math.exp(m.n),
    "logarithms": lambda x, m: x * math.log(m.t + 2) / math.log(m.n + 1, 3),
    "way by a power of e": lambda x, m: x.sin() if math.exp(-m.t) > 0.9 else x * m.n,
    "rounding": lambda x, m: x * (((m.t + 0.1) + 0.2) * 3 / 7) / (m.t * m.t + 1),
    "noise": lambda x, m: x + torch.randn_like(x) * m.t,
    "in place": lambda x, m: x.clone().mul_(m.t).add_(m.n),
    "filled": lambda x, m: x * torch.full_like(x, m.t) * torch.tensor(m.n),
    "whole numbers": lambda x, m: x * ((torch.arange(8) * m.n) % 5),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("work", WORK.values(), ids=WORK)
def test_numbers_reach_the_ops_that_eager_calls(
    work: Work, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    model, eager, x = pair(Numbers(work), dtype)
    with plannings(caplog) as made:
        for i, t in enumerate((0.5, 0.25, 0.0, 1.0, 0.3)):
            for each in (model, eager):
                each.n, each.t = i + 1, t
                each.zero_grad()
                each.loss = trained(each, lambda each: each(x), seed=i)
            assert torch.equal(model.loss, eager.loss)
            assert same_gradients(model, eager)
        # alpha of 1 is a case of its own in torch's rules for `add`
        assert made() <= 3


#: Of these torch takes constants alone; sizes are what is planned for.
EACH_VALUE = {
    "dropout": lambda x, m: F.dropout(x, m.t / 2),
    "power": lambda x, m: x**m.n,
    "base": lambda x, m: (1 + m.t) ** x,
    "eps": lambda x, m: F.layer_norm(x, (8,), eps=m.t + 1e-3),
    "size": lambda x, m: x[:, : m.n],
    "index": lambda x, m: x[m.n] * x,
}


@pytest.mark.fast(3)
@pytest.mark.parametrize("work", EACH_VALUE.values(), ids=EACH_VALUE)
def test_a_number_that_must_be_a_constant_is_planned_for_value_by_value(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(met_graph, "MOST_GRAPHS", 2)
    model, eager, x = pair(Numbers(work))
    for i, t in enumerate((0.5, 0.25, 0.0, 1.0, 0.5, 0.5)):
        for each in (model, eager):
            each.n, each.t = 1 + i % 4, t
            each.zero_grad()
            each.loss = trained(each, lambda each: each(x), seed=i)
        torch.testing.assert_close(model.loss, eager.loss, rtol=1e-6, atol=0)
        assert len(model.graphopt.session.graphs) <= 3
        for ours, theirs in zip(model.parameters(), eager.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-7)


def test_a_schedule_of_300_values_is_planned_for_twice(caplog: pytest.LogCaptureFixture) -> None:
    model, eager, x = pair(Numbers(lambda x, m: F.softmax(x * m.t, -1) * m.t))
    schedule = [*(1 - i / 299 for i in range(300)), math.inf, 1.0]
    with plannings(caplog) as made:
        for t in schedule:
            for each in (model, eager):
                each.t = t
                each.zero_grad()
                each.loss = trained(each, lambda each: each(x))
            assert torch.equal(model.loss, eager.loss) or (math.isinf(t) and eager.loss.isnan())
            if math.isfinite(t):
                assert same_gradients(model, eager)
        assert made() == 2


class Flag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.warm, self.n = nn.Linear(8, 8), True, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.n += 1
        x = self.layer(x)
        return x.sin().mean() if self.warm else (x * self.n).square().mean()


class Grows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.n = nn.Linear(8, 8), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.n += 1
        h = self.layer(x)
        return h.sin().mean() if self.n <= 3 else (h.square() / self.n).mean()


@pytest.mark.parametrize("kind", [Flag, Grows])
def test_each_way_that_a_flag_or_a_number_decides_on_is_planned_for_once(
    kind: type[nn.Module], caplog: pytest.LogCaptureFixture
) -> None:
    model, eager, x = pair(kind())
    with plannings(caplog) as made:
        for i in range(10):
            for each in (model, eager):
                each.warm = i % 4 < 2
                each.zero_grad()
                each.loss = trained(each, lambda each: each(x))
            assert torch.equal(model.loss, eager.loss)
            assert same_gradients(model, eager)
        assert made() <= 4


def test_the_plan_in_force_is_that_of_the_way_that_was_taken() -> None:
    class Ways(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.is_wide = nn.Linear(8, 512), True

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.wide(x).sin().mean() if self.is_wide else x.sin().mean() + self.wide.bias.sum()

    model, x, peaks = optimized(Ways()), torch.randn(64, 8), []
    for is_wide in (True, False, True, False):
        model.is_wide = is_wide
        model.zero_grad()
        model(x).backward()
        peaks.append(model.graphopt.plan.peak_bytes)
    assert peaks[0] == peaks[2] > peaks[1] == peaks[3]


def test_gradients_are_accumulated_while_a_number_changes(caplog: pytest.LogCaptureFixture) -> None:
    model, eager, x = pair(Counts())
    with plannings(caplog) as made:
        for i in range(9):
            for each in (model, eager):
                if i % 3 == 0:
                    each.zero_grad()
                trained(each, lambda each: each(x))
            assert same_gradients(model, eager)
        after = made()
        for i in range(6):
            if i % 3 == 0:
                model.zero_grad()
            model(x).backward()
        assert made() == after


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_training_step_takes_numbers_as_inputs(accumulate: int) -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.n, self.t = nn.Linear(8, 8), 0, 1.0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.n += 1
            self.t = self.t * 0.9 + 0.05
            return F.leaky_relu(self.layer(x) / self.n, self.t).square().mean()

    torch.manual_seed(0)
    model, x = Both(), torch.randn(16, 8)
    eager = copy.deepcopy(model)
    ours, theirs = (torch.optim.SGD(each.parameters(), lr=0.1) for each in (model, eager))
    step = graphopt.train_step(model, None, ours, "1MiB", cost_model="roofline", accumulate=accumulate)
    windows = []
    for _ in range(6):
        with graphopt.kernels.use("stock"):  # an own product is added where it is made: rounded as the BLAS likes
            loss = step(x).loss
        windows.append(step.graph_module)
        theirs.zero_grad()
        expected = torch.zeros(())
        for piece in x.chunk(accumulate):
            part = eager(piece) / accumulate
            part.backward()
            expected += part.detach()
        theirs.step()
        assert torch.equal(loss, expected)
        assert (model.n, model.t) == (eager.n, eager.t)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), eager.parameters(), strict=True))
    assert windows[1] is windows[-1]
    assert len(step._memory.planned) == 2


def test_the_backend_takes_floats_as_inputs_and_says_when_torch_compile_captures_no_more() -> None:
    model = Numbers(lambda x, m: x * m.t + m.n)
    eager, x = copy.deepcopy(model), torch.randn(16, 8)
    compiled = torch.compile(model, backend="graphopt", options={"mem_budget": "1MiB", "cost_model": "roofline"})
    with torch._dynamo.config.patch(recompile_limit=4, error_on_recompile=False):
        for t in (0.5, 0.25, 0.0, 1.0, 0.3):
            for each in (model, eager):
                each.t = t
                each.zero_grad()
            trained(compiled, lambda each: each(x))
            trained(eager, lambda each: each(x))
            assert same_gradients(model, eager)
        with pytest.warns(UserWarning, match=r"captured the model 4 times.*recompile_limit"):
            for n in (2, 3, 4):
                model.n = n
                compiled(x).backward()


def test_captures_are_told_of_and_a_frequent_cause_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    model, _, x = pair(Numbers(lambda x, m: x[:, : m.n]), dynamic=False)
    with caplog.at_level(logging.INFO, logger="graphopt"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for n in range(1, 9):
            model.n = n
            model(x).backward()
        for rows in range(17, 30):
            model(torch.randn(rows, 8)).backward()
    told = [record.message for record in caplog.records if record.message.startswith("captured anew")]
    assert "captured anew, as it is no longer so that model.n == 1" in told
    assert len(told) == 7 + 13
    said = [str(warning.message) for warning in caught if "for one cause" in str(warning.message)]
    assert len(said) == 1
    assert f"{captures.MANY} times" in said[0] and "Pad to fewer shapes" in said[0]


class Shaped(nn.Module):
    def __init__(self, breaks: bool) -> None:
        super().__init__()
        self.a, self.b, self.breaks = nn.Linear(8, 8), nn.Linear(8, 8), breaks

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x).sin()
        if self.breaks:
            torch._dynamo.graph_break()
        return self.b(x).square().mean()


@pytest.mark.fast(1)
@pytest.mark.parametrize("breaks", [False, True])
def test_plans_that_were_not_used_for_longest_go_and_are_freed(
    breaks: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    most = 6
    monkeypatch.setattr(met_graph, "MOST_GRAPHS", most)
    model, eager, _ = pair(Shaped(breaks), dynamic=False)
    graphs: weakref.WeakSet[DynamoGraph] = weakref.WeakSet()
    studies: weakref.WeakSet[object] = weakref.WeakSet()
    with plannings(caplog) as made:
        for rows in [*range(1, 20), *(19, 18, 17)]:
            x = torch.randn(rows, 8)
            for each in (model, eager):
                each.zero_grad()
                trained(each, lambda each, x=x: each(x))
            assert same_gradients(model, eager)
            kept = model.graphopt.session.graphs
            graphs |= weakref.WeakSet(kept)
            studies |= weakref.WeakSet(graph.studies for graph in kept)
            assert len(kept) <= most + 2
            del kept
        assert made() == 19  # what was used lately is still there
    gc.collect()
    assert len(graphs) <= most + 2
    assert len(studies) <= most + 2


def test_a_model_of_more_graphs_than_are_kept_is_planned_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(met_graph, "MOST_GRAPHS", 1)
    model, _, x = pair(Shaped(True))
    with plannings(caplog) as made:
        for _ in range(4):
            model.zero_grad()
            model(x).backward()
        assert made() == 1


def test_training_goes_on_after_any_number_of_captures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(met_graph, "MOST_GRAPHS", 2)
    monkeypatch.setattr(session, "MOST_CAPTURES", 6)
    model, eager, _ = pair(Shaped(False))
    with torch._dynamo.config.patch(recompile_limit=3, accumulated_recompile_limit=3):
        for rows in range(1, 16):
            x = torch.randn(rows, 8)
            for each in (model, eager):
                each.zero_grad()
                trained(each, lambda each, x=x: each(x))
            assert same_gradients(model, eager)
            assert len(model.graphopt.session.graphs) <= 3


def test_the_number_of_tokens_that_a_trainer_hands_to_a_transformer_is_an_input(
    caplog: pytest.LogCaptureFixture,
) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"n_layer": 2, "n_embd": 64, "n_head": 2, "vocab_size": 100, "bos_token_id": 0, "eos_token_id": 0}
    chances = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_positions=64, **sizes, **chances)).train()
    eager, x = copy.deepcopy(model), torch.randint(0, 100, (2, 16))
    optimized(model)
    with plannings(caplog) as made:
        for tokens in range(20, 25):
            for each in (model, eager):
                each.zero_grad()
                trained(each, lambda each, n=tokens: each(input_ids=x, labels=x, num_items_in_batch=n).loss)
            assert same_gradients(model, eager)
        assert made() == 2

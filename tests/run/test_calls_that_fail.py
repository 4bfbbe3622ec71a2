"""Calls that end in an error, that nothing of could be captured, or that something around the model forbids to capture:
the error is the user's own, training goes on as planned, and what runs without a plan is measured and told of.
"""

from __future__ import annotations

import copy
import random
import threading
import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import graphopt
from graphopt.base.errors import CaptureError, UsageError
from graphopt.device.measure import peak_bytes
from tests.support.residual_blocks import blocks, same_gradients

X = torch.linspace(-1, 1, 128 * 64).reshape(128, 64)


def step_bytes(model: nn.Module, x: Tensor = X) -> int:
    model.zero_grad()
    return peak_bytes(lambda: model(x).square().mean().backward(), [*model.parameters(), x], "cpu")


class Picky(nn.Module):
    """Refuses batches of three rows, behind its first half."""

    def __init__(self, error: type[Exception]) -> None:
        super().__init__()
        self.a, self.b, self.error = blocks(2), blocks(2), error

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        if self.error is AssertionError:
            assert x.shape[0] != 3, "bad batch"
        elif x.shape[0] == 3:
            raise self.error("bad batch")
        return self.b(h)  # type: ignore[no-any-return]


@pytest.mark.fast(1)
@pytest.mark.parametrize("error", [ValueError, KeyError, AssertionError])
def test_an_error_of_the_model_is_its_own_and_planning_goes_on(error: type[Exception]) -> None:
    model = Picky(error)
    eager = copy.deepcopy(model)
    graphopt.optimize(model, 1_800_000, example_inputs=X, cost_model="roofline")
    before = step_bytes(model)
    for _ in range(2):
        with pytest.raises(error, match="bad batch"):
            model(X[:3])
        step_bytes(eager)
        assert max(step_bytes(model), step_bytes(model)) <= 1_800_000
        assert same_gradients(model, eager)
    assert before <= 1_800_000 and not any(step.measured_bytes > 1_800_000 for step in model.graphopt.history)


def test_inputs_that_do_not_fit_are_an_error_that_loops_expect() -> None:
    model = graphopt.optimize(blocks(1), "1GiB", cost_model="roofline")
    model(X).sum().backward()
    with pytest.raises(RuntimeError) as wrong:
        model(X[:, :63])
    assert isinstance(wrong.value, CaptureError)
    model(X).sum().backward()


def test_a_backward_hook_stops_the_plan_which_is_told_and_goes_on_without_it() -> None:
    model = graphopt.optimize(blocks(3), 1_330_000, example_inputs=X, cost_model="roofline")
    assert step_bytes(model) <= 1_330_000
    handle = model[1].register_full_backward_hook(lambda *_: None)
    with pytest.warns(UserWarning, match=r"a training step took.*No planned graph ran in it"):
        assert step_bytes(model) > 1_330_000
    assert model.graphopt.history[-1].measured_bytes > 1_330_000
    handle.remove()
    assert step_bytes(model) <= 1_330_000 and step_bytes(model) <= 1_330_000


def test_a_call_without_a_plan_inside_the_budget_is_told_of_once_for_each_cause() -> None:
    model = graphopt.optimize(blocks(1), "1GiB", cost_model="roofline")
    model(X).sum().backward()
    handle = model[0].register_full_backward_hook(lambda *_: None)
    with pytest.warns(
        UserWarning, match=r"a training call ran without a plan, as nothing of Sequential.*'0' has a backw"
    ):
        model(X).sum().backward()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="graphopt")
        model(X).sum().backward()
        handle.remove()
        model(X).sum().backward()


def test_a_model_of_which_nothing_is_captured_from_the_start_is_refused_at_its_first_training_call() -> None:
    class LayerDrop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                if random.random() > 0.1:
                    x = layer(x)
            return x

    model = graphopt.optimize(LayerDrop(), "1GiB", cost_model="roofline")
    with pytest.raises(CaptureError, match=r"nothing of LayerDrop could be captured:(.|\n)*forward was given up"):
        model(X)


def test_what_is_not_captured_at_all_is_measured() -> None:
    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = blocks(1)

        def forward(self, xs: Iterator[Tensor]) -> Tensor:
            return sum(self.layers(x) for x in xs)  # type: ignore[return-value]

    model = graphopt.optimize(Sums(), 700_000, example_inputs=([X[:64]] * 6,), cost_model="roofline")
    with pytest.warns(UserWarning, match="No planned graph ran in it"):
        model(x + 0 for x in [X[:64]] * 6).square().mean().backward()
    assert model.graphopt.history[-1].measured_bytes > 700_000


def test_a_generator_of_the_models_own_is_drawn_from_once() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.own = nn.Linear(64, 8), torch.Generator().manual_seed(5)

        def forward(self, x: Tensor, given: torch.Generator) -> Tensor:
            noise = torch.randn(x.shape, generator=given) + torch.randn(x.shape, generator=self.own)
            return self.layer(x + noise)  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model, found = Noisy(), []
    weights = copy.deepcopy(model.state_dict())
    for optimized in (False, True):
        model = Noisy()
        model.load_state_dict(weights)
        if optimized:
            graphopt.optimize(model, "1GiB", cost_model="roofline")
        given = torch.Generator().manual_seed(3)
        losses = [model(X, given).square().mean().item() for _ in range(3)]
        found.append((losses, given.get_state().tolist(), model.own.get_state().tolist()))
    assert found[0] == found[1]


def test_examples_and_verification_leave_a_generator_among_the_inputs() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 8)

        def forward(self, x: Tensor, given: torch.Generator) -> Tensor:
            return self.layer(x + torch.randn(x.shape, generator=given)).square().mean()  # type: ignore[no-any-return]

    given = torch.Generator().manual_seed(3)
    before = given.get_state()
    graphopt.optimize(Noisy(), "1GiB", example_inputs=(X, given), cost_model="roofline", verify=True)
    assert torch.equal(given.get_state(), before)


def test_a_checkpoint_around_the_model_runs_it_as_it_is_which_is_said() -> None:
    model = blocks(4)
    eager = copy.deepcopy(model)
    graphopt.optimize(model, 1_900_000, cost_model="roofline")
    with pytest.warns(UserWarning, match="checkpoint around the model"):
        for _ in range(2):
            for each in (model, eager):
                each.zero_grad()
                checkpoint(each, X, use_reentrant=False).square().mean().backward()
            assert same_gradients(model, eager)


def test_threads_capture_one_after_the_other() -> None:
    failed: list[BaseException] = []

    def train() -> None:
        try:
            model = graphopt.optimize(blocks(1), "2MiB", example_inputs=X, cost_model="roofline")
            for _ in range(3):
                model(X).square().mean().backward()
        except BaseException as error:
            failed.append(error)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        threads = [threading.Thread(target=train) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failed


def test_parameters_without_a_shape_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"'0\.weight' has no shape yet: call the model once"):
        graphopt.optimize(nn.Sequential(nn.LazyLinear(8)), "1GiB")


@pytest.mark.parametrize("watch", ["retain", "hook"])
def test_a_gradient_between_outputs_is_told_of(watch: str) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(64, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = self.a(x).tanh()
            return self.b(h), h

    model = graphopt.optimize(Two(), "1GiB", cost_model="roofline")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        output, h = model(X)
        (output.square().sum() + h.sum()).backward()
    output, h = model(X)
    h.retain_grad() if watch == "retain" else h.register_hook(lambda gradient: gradient.clamp(-1, 1))
    with pytest.warns(UserWarning, match="of which its other outputs are made"):
        (output.square().sum() + h.sum()).backward()


def test_why_a_model_is_captured_anew_is_told_in_the_users_words(caplog: pytest.LogCaptureFixture) -> None:
    model = graphopt.optimize(blocks(1), "1GiB", cost_model="roofline")
    model(X).sum().backward()
    first = model[0]
    position = next(i for i, layer in enumerate(first) if isinstance(layer, nn.GELU))  # type: ignore[arg-type]
    first[position] = nn.Tanh()  # type: ignore[index]
    with caplog.at_level("INFO", logger="graphopt"):
        model(X).sum().backward()
    (told,) = [message for message in caplog.messages if message.startswith("captured anew")]
    assert told == f"captured anew, as model.0.{position} is of another type"

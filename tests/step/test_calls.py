"""How a step is called and what models do in their forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F

import graphopt
from graphopt.base.errors import UsageError
from tests.support.loops import make_pair, state_of
from tests.support.models import Noisy, Perceptron, seeded, vectors
from tests.support.zoo import ZOO, differences


def sgd(parameters: Any) -> optim.Optimizer:
    return optim.SGD(parameters, 0.1, momentum=0.5, fused=True)


@pytest.mark.fast(1)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_train_and_eval_may_change_between_steps(accumulate: int) -> None:
    pair = make_pair(seeded(Noisy), sgd, accumulate=accumulate)
    for training, batch in zip((True, False, True, False), vectors(4), strict=True):
        pair.step.model.train(training), pair.loop.model.train(training)
        pair.run([batch])
    assert pair.differences() == {}
    assert pair.step.model.norm.num_batches_tracked == 2 * accumulate  # type: ignore[union-attr]


def test_a_part_in_eval_mode_stays_there() -> None:
    pair = make_pair(seeded(Noisy), sgd)
    for model in (pair.step.model, pair.loop.model):
        model.norm.eval()  # type: ignore[union-attr]
    pair.run(vectors(3))
    assert pair.differences() == {} and pair.step.model.norm.num_batches_tracked == 0  # type: ignore[union-attr]


def test_gradients_are_on_inside_a_step() -> None:
    pair = make_pair(seeded(Perceptron), sgd, accumulate=2)
    for (x, y), _ in vectors(2):
        with torch.no_grad(), graphopt.kernels.use("stock"):
            pair.step(x, y)
        pair.loop(x, y)
    assert pair.differences() == {}


class Counting(Perceptron):
    """Python side effects in the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.log: list[int] = []

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        self.log.append(len(x))
        return super().forward(x, y)


def test_what_the_forward_does_in_python_is_done_once_a_micro_batch() -> None:
    pair = make_pair(seeded(Counting), sgd, accumulate=2)
    pair.run(vectors(2))
    assert pair.differences() == {}
    assert pair.step.model.calls == pair.loop.model.calls == 4
    assert pair.step.model.log == pair.loop.model.log == [4] * 4


def test_batches_of_many_shapes() -> None:
    pair = make_pair(seeded(Perceptron), sgd)
    for rows in (8, 3, 8, 1, 3):
        pair.run(vectors(1, rows=rows))
    assert pair.differences() == {}
    assert len(pair.step._windows) <= 2 * 3  # three shapes, with and without momentum


class Named(nn.Module):
    """Takes names, a nested batch, and gives back more than a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Perceptron()

    def forward(self, *, pair: dict[str, Tensor], scale: float = 1.0) -> dict[str, Tensor]:
        guess = self.inner.predicted(pair["x"] * scale)
        return {"guess": guess, "loss": F.mse_loss(guess, pair["y"])}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_keyword_batches_and_mappings(accumulate: int) -> None:
    class Loss(Named):
        def forward(self, **batch: Any) -> Tensor:  # type: ignore[override]
            return super().forward(**batch)["loss"]

    pair = make_pair(seeded(Loss), sgd, accumulate=accumulate)
    mapped = seeded(Named)()
    step = graphopt.train_step(mapped, None, sgd(mapped.parameters()), accumulate=accumulate)
    outside = seeded(Named)()
    by_function = graphopt.train_step(
        outside, lambda out: out["loss"], sgd(outside.parameters()), accumulate=accumulate
    )
    for (x, y), _ in vectors(3):
        batch = {"pair": {"x": x, "y": y}, "scale": 0.5}
        with graphopt.kernels.use("stock"):
            found = [step(**batch).loss, pair.step(**batch).loss, by_function(**batch).loss]
        expected, _ = pair.loop(**batch)
        assert all(torch.equal(loss, expected) for loss in found)
    assert pair.differences() == {}
    for other in (mapped, outside):
        assert differences(state_of(other, sgd(other.parameters())), dict(pair.loop.model.named_parameters())) == {}


def test_the_loss_function_takes_the_last_input() -> None:
    class Guess(Perceptron):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return self.predicted(x)

    pair = make_pair(seeded(Perceptron), sgd, accumulate=2)
    model = seeded(Guess)()
    step = graphopt.train_step(model, F.mse_loss, sgd(model.parameters()), accumulate=2)
    for (x, y), _ in vectors(3):
        with graphopt.kernels.use("stock"):
            step(x, y)
        pair.loop(x, y)
    assert differences(dict(model.named_parameters()), dict(pair.loop.model.named_parameters())) == {}


@pytest.mark.slow
def test_models_of_transformers_bring_their_loss() -> None:
    case, twin = ZOO["gpt2"](), ZOO["gpt2"]()
    ids = case.kwargs["input_ids"][:, :16]
    batch = {"input_ids": ids, "labels": ids, "use_cache": False}
    step = graphopt.train_step(case.model, None, sgd(case.model.parameters()), accumulate=2, cost_model="roofline")
    torch.manual_seed(1)
    out = step(**batch)
    torch.manual_seed(1)
    losses = []
    for half in ids.chunk(2):
        loss = twin.model(input_ids=half, labels=half, use_cache=False).loss / 2
        loss.backward()
        losses.append(loss.detach())
    sgd(twin.model.parameters()).step()
    assert torch.equal(out.loss, losses[0] + losses[1])
    assert differences(dict(case.model.named_parameters()), dict(twin.model.named_parameters())) == {}


class OneElement(Perceptron):
    """A loss of shape (1,)."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return super().forward(x, y).reshape(1)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loss_of_one_element_is_a_number(accumulate: int) -> None:
    pair = make_pair(seeded(Perceptron), sgd, accumulate=accumulate)
    model = seeded(OneElement)()
    step = graphopt.train_step(model, None, sgd(model.parameters()), accumulate=accumulate)
    for (x, y), _ in vectors(2):
        with graphopt.kernels.use("stock"):
            step(x, y)
        pair.loop(x, y)
    assert differences(dict(model.named_parameters()), dict(pair.loop.model.named_parameters())) == {}


class Broken(Perceptron):
    """A graph break."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = x * 2
        torch._dynamo.graph_break()
        return super().forward(x, y)


def test_a_graph_break_is_refused_with_its_line() -> None:
    line = Broken.forward.__code__.co_firstlineno + 2
    step = make_pair(seeded(Broken), sgd).step
    before = state_of(step.model, step.optimizer)
    with pytest.raises(graphopt.CaptureError, match=rf"test_calls\.py:{line}"):
        step(*vectors(1)[0][0])
    assert differences(before, state_of(step.model, step.optimizer)) == {}


class Keeps(Perceptron):
    """Keeps an activation in an attribute."""

    def predicted(self, x: Tensor) -> Tensor:
        self.kept = super().predicted(x)
        return self.kept


@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        (Keeps, graphopt.CaptureError, "keeps a tensor that it computes"),
        (lambda: Vector(), graphopt.UsageError, "must be a single number"),
        (lambda: NoLoss(), graphopt.UsageError, "loss"),
    ],
)
def test_what_cannot_be_a_step_is_refused(model: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make_pair(seeded(model), sgd).step(*vectors(1)[0][0])


class Vector(Perceptron):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.predicted(x) - y


class NoLoss(Perceptron):
    def forward(self, x: Tensor, y: Tensor) -> Any:
        return {"guess": self.predicted(x) - y}


def test_optimizers_of_another_model_and_nothing_to_train_are_refused() -> None:
    model, other = seeded(Perceptron)(), seeded(Perceptron)()
    with pytest.raises(graphopt.UsageError, match="not the model's"):
        graphopt.train_step(model, None, sgd(other.parameters()))
    with pytest.raises(graphopt.UsageError, match="nothing to train"):
        frozen = seeded(Perceptron)().requires_grad_(False)
        graphopt.train_step(frozen, None, sgd(frozen.parameters()))(*vectors(1)[0][0])


def test_hooks_of_the_optimizer_are_called() -> None:
    pair = make_pair(seeded(Perceptron), lambda p: optim.SGD(p, 0.1))
    called: list[str] = []
    pair.step.optimizer.register_step_pre_hook(lambda *_: called.append("before"))
    pair.step.optimizer.register_step_post_hook(lambda *_: called.append("after"))
    pair.run(vectors(2))
    assert called == ["before", "after"] * 2 and pair.differences() == {}


@pytest.mark.parametrize("hook", ["register_hook", "register_post_accumulate_grad_hook"])
def test_hooks_on_gradients_are_refused(hook: str) -> None:
    model = seeded(Perceptron)()
    getattr(model.get_parameter("first.weight"), hook)(lambda _: None)
    with pytest.raises(graphopt.UsageError, match=r"first\.weight has a hook"):
        graphopt.train_step(model, None, sgd(model.parameters()))


def test_a_budget_that_does_not_do_is_refused_before_anything_runs() -> None:
    model = seeded(Perceptron)()
    ((x, y), _) = vectors(1)[0]
    with pytest.raises(graphopt.BudgetError) as caught:
        graphopt.train_step(model, None, sgd(model.parameters()), "1KiB", example_inputs=(x, y))
    graphopt.train_step(model, None, sgd(model.parameters()), caught.value.minimum_bytes, example_inputs=(x, y))


@pytest.mark.parametrize(
    ("loss", "args", "said"),
    [
        (F.mse_loss, 1, "Linear.forward: missing a required argument.*last positional argument is its target"),
        (F.mse_loss, 3, "Linear.forward: too many positional arguments"),
        (lambda output: output.sum(), 2, "the loss function: too many positional arguments"),
        (None, 2, "Linear.forward: too many positional arguments$"),
    ],
)
def test_wrong_arguments_are_told_as_the_model_and_the_loss_take_them(loss: Any, args: int, said: str) -> None:
    model = nn.Linear(8, 8)
    step = graphopt.train_step(model, loss, sgd(model.parameters()))
    with pytest.raises(UsageError, match=said):
        step(*[torch.zeros(4, 8)] * args)


def test_planning_with_examples_leaves_the_models_counters() -> None:
    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.n, self.seen = nn.Linear(8, 8), 0, [0]

        def forward(self, x: Tensor) -> Tensor:
            self.n += 1
            self.seen.append(self.n)
            return self.layer(x).square().mean() / self.n

    model, x = Counted(), torch.randn(4, 8)
    step = graphopt.train_step(model, None, sgd(model.parameters()), example_inputs=x, cost_model="roofline")
    assert (model.n, model.seen) == (0, [0])
    with torch.no_grad():
        expected = model.layer(x).square().mean()
    assert torch.equal(step(x).loss, expected) and (model.n, model.seen) == (1, [0, 1])

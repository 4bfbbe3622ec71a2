"""The recurrence of a layer as one op: the bits of eager's loop, forward and backward."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from graphopt.kernels.recurrent.recurrence import recurrence

F = torch.nn.functional


@pytest.fixture
def eagers_loop() -> Iterator[None]:
    """Eager takes its loop for LSTMs too."""
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    yield
    torch._C._set_mkldnn_enabled(before)


@dataclass(frozen=True)
class Layer:
    """A layer in one or two directions, and what it is called with; states are [directions, batch, size].

    Of packed sequences the input is [rows, features], and `batch_sizes` says how many rows each step has.
    """

    kind: str
    bias: bool
    input: Tensor
    states: tuple[Tensor, ...]
    weights: tuple[tuple[Tensor, ...], ...]
    batch_sizes: Tensor | None

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return self.input, *self.states, *(weight for one in self.weights for weight in one)

    def by_torch(self) -> tuple[Tensor, ...]:
        run, state = getattr(torch, self.kind), list(self.states) if self.kind == "lstm" else self.states[0]
        weights = [weight for one in self.weights for weight in one]
        options = (state, weights, self.bias, 1, 0.0, True, len(self.weights) == 2)
        packed = self.batch_sizes is not None
        return run(self.input, self.batch_sizes, *options) if packed else run(self.input, *options, False)  # type: ignore[no-any-return]

    def by_op(self) -> tuple[Tensor, ...]:
        found = []
        for i, (first, own) in enumerate(zip(zip(*self.states, strict=True), self.weights, strict=True)):
            b_ih, b_hh = own[2:4] if self.bias else (None, None)
            (w_hr,) = own[4 if self.bias else 2 :] or (None,)
            h, c, *_ = (*first, None)
            from_input = F.linear(self.input, own[0], b_ih)
            found.append(
                recurrence(from_input, self.batch_sizes, h, c, own[1], b_hh, w_hr, self.kind, i == 1)[: 1 + len(first)]
            )
        outputs, *last = zip(*found, strict=True)
        return torch.cat(outputs, -1) if len(outputs) == 2 else outputs[0], *(torch.stack(one) for one in last)


def layer(seed: int, *, packed: bool = False) -> Layer:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    kind, hidden = draw.choice(["lstm", "gru", "rnn_tanh", "rnn_relu"]), draw.choice([1, 2, 5, 8, 19, 33])
    steps, batch, features = draw.choice([1, 2, 5, 9]), draw.choice([1, 2, 4, 7, 16]), draw.choice([1, 3, 8, 17])
    dtype = draw.choice([torch.float32, torch.float32, torch.float64, torch.bfloat16])
    projection = draw.randint(1, hidden - 1) if kind == "lstm" and hidden > 1 and draw.random() < 0.4 else 0
    bias, gates = draw.random() < 0.7, {"lstm": 4, "gru": 3}.get(kind, 1) * hidden
    directions, size = draw.choice([1, 2]), projection or hidden
    shapes: list[tuple[int, ...]] = [(gates, features), (gates, size)]
    shapes += [(gates,), (gates,)] if bias else []
    shapes += [(projection, hidden)] if projection else []

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype).mul_(0.5).requires_grad_()

    widths = [size, hidden] if kind == "lstm" else [size]
    states = tuple(leaf(directions, batch, width) for width in widths)
    weights = tuple(tuple(leaf(*shape) for shape in shapes) for _ in range(directions))
    if not packed:
        return Layer(kind, bias, leaf(steps, batch, features), states, weights, None)
    sizes = [batch, *sorted((draw.randint(1, batch) for _ in range(steps - 1)), reverse=True)]
    return Layer(kind, bias, leaf(sum(sizes), features), states, weights, torch.tensor(sizes))


def loss_of(outputs: tuple[Tensor, ...], used: int) -> Tensor:
    """Of some of the outputs, by the bits of `used`."""
    terms = [output.double().sin().sum() for i, output in enumerate(outputs) if used >> i & 1]
    return torch.stack(terms).sum()


@pytest.mark.usefixtures("eagers_loop")
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("seed", range(60))
def test_it_has_the_bits_of_eagers_loop(seed: int, packed: bool) -> None:
    case = layer(seed, packed=packed)
    expected, found = case.by_torch(), case.by_op()
    assert all(map(torch.equal, found, expected))
    used = [1, 2, 3, 7][seed % 4]
    ours, theirs = (torch.autograd.grad(loss_of(outputs, used), case.leaves) for outputs in (found, expected))
    assert all(map(torch.equal, ours, theirs))


def test_two_backwards_of_one_forward_give_the_same() -> None:
    case = layer(1)
    outputs = case.by_op()
    first = torch.autograd.grad(loss_of(outputs, 3), case.leaves, retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(loss_of(outputs, 3), case.leaves)))


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_tanh"])
def test_what_is_traced_is_what_is_run(kind: str) -> None:
    gates = {"lstm": 4, "gru": 3}.get(kind, 1) * 5
    h = torch.randn(3, 5, requires_grad=True)
    c = torch.randn(3, 5, requires_grad=True) if kind == "lstm" else None
    weights = torch.randn(gates, 5, requires_grad=True), torch.randn(gates, requires_grad=True)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(
        recurrence,
        (torch.randn(4, 3, gates, requires_grad=True), None, h, c, *weights, None, kind, True),
        test_utils=tests,
    )
    torch.library.opcheck(
        recurrence,
        (torch.randn(6, gates, requires_grad=True), torch.tensor([3, 2, 1]), h, c, *weights, None, kind, True),
        test_utils=tests,
    )

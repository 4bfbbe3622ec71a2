"""In-place writes to what crosses a break, and to what outlives a call: once each, with eager's bits and errors."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import graphopt
from graphopt.base.errors import CaptureError
from graphopt.device.measure import peak_bytes
from tests.support.residual_blocks import same_gradients

Forward = Callable[["Model", Tensor], Tensor]
cut = torch._dynamo.graph_break


class Model(nn.Module):
    """Two layers, what a step may write into, and a forward of the test's."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 64)
        self.moving, self.cache = nn.Parameter(torch.ones(64), requires_grad=False), torch.zeros(64)
        self.register_buffer("count", torch.zeros(()))
        self.given = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.given(self, x)


def item(m: Model, x: Tensor) -> Tensor:
    h = m.a(x)
    cut()
    h[:, 0] = 0.0
    return m.b(h)


def product(m: Model, x: Tensor) -> Tensor:
    h = m.a(x)
    cut()
    h.mul_(2)
    return m.b(h)


def by_indices(m: Model, x: Tensor) -> Tensor:
    h = m.a(x)
    cut()
    h.index_put_((torch.tensor([0, 2]),), torch.zeros(64))
    return m.b(h)


def masked_fill(m: Model, x: Tensor) -> Tensor:
    h = m.a(x)
    mask = h > 0.5
    cut()
    h.masked_fill_(mask, 0.1)
    return m.b(h)


def masked_parameter(m: Model, x: Tensor) -> Tensor:
    h = m.a(x)
    mask = x[:, 0] > 0
    cut()
    h[mask] = m.b.bias
    return m.b(h)


def out(m: Model, x: Tensor) -> Tensor:
    h = m.a(x).detach()
    cut()
    torch.add(x, 1, out=h)
    return m.b(h)


def view_made_behind(m: Model, x: Tensor) -> Tensor:
    h = m.a(x)
    cut()
    h.view(-1).mul_(2)
    return m.b(h)


def view_made_before(m: Model, x: Tensor) -> Tensor:
    h = m.a(x)
    view = h.view(-1)
    cut()
    view.mul_(2)
    return m.b(h)


def base_of_expanded(m: Model, x: Tensor) -> Tensor:
    h = m.a(x).sum(0)
    view = h.expand(4, 64)
    cut()
    h.mul_(3)
    return m.b(view)


def used_on_both_sides(m: Model, x: Tensor) -> Tensor:
    h = m.a(x)
    before = h.sum()
    cut()
    h.mul_(2)
    cut()
    return m.b(h).square().sum() + before + h.mean()


def two_breaks(m: Model, x: Tensor) -> Tensor:
    h = m.a(x)
    view = h[:, :3]
    cut()
    view.mul_(2)
    cut()
    h.add_(1)
    return m.b(h)


def without_gradients(m: Model, x: Tensor) -> Tensor:
    h = m.a(x)
    cut()
    with torch.no_grad():
        h.mul_(2)
    return m.b(h)


def gets_a_gradient(m: Model, x: Tensor) -> Tensor:
    h = torch.zeros(x.shape)
    cut()
    h += m.a(x)
    cut()
    return m.b(h)


def part_gets_a_gradient(m: Model, x: Tensor) -> Tensor:
    h = torch.zeros(x.shape)
    cut()
    h[:, :5] = m.a(x)[:, :5]
    cut()
    h[:, 1] = 1
    return m.b(h)


def replaced(m: Model, x: Tensor) -> Tensor:
    h = m.a(x)
    cut()
    h.copy_(m.b(x))
    cut()
    return m.b(h)


def dropout(m: Model, x: Tensor) -> Tensor:
    h = m.a(x)
    cut()
    return m.b(nn.functional.dropout(h, inplace=True))


def relu(m: Model, x: Tensor) -> Tensor:
    h = m.a(x)
    cut()
    return m.b(nn.functional.relu(h, inplace=True))


def batch(m: Model, x: Tensor) -> Tensor:
    x.mul_(2)
    h = m.a(x)
    cut()
    return m.b(h)


def batch_behind(m: Model, x: Tensor) -> Tensor:
    h = m.a(x.clone())
    cut()
    x.add_(2)
    return m.b(h) * x


def batch_gets_a_gradient(m: Model, x: Tensor) -> Tensor:
    x[:, :5] = m.a(x.clone())[:, :5]
    cut()
    return m.b(x)


def parameter(m: Model, x: Tensor) -> Tensor:
    with torch.no_grad():
        m.moving.mul_(0.9).add_(0.1 * m.a.bias)
    h = m.a(x)
    cut()
    return m.b(h) * m.moving


def attribute(m: Model, x: Tensor) -> Tensor:
    with torch.no_grad():
        m.cache.add_(1)
    m.count.add_(1)
    h = m.a(x)
    cut()
    m.cache.mul_(1.1)
    return m.b(h) * m.cache * m.count


@torch._dynamo.disable
def write(h: Tensor, x: Tensor) -> None:
    h.mul_(2)
    x.add_(1)


def between_graphs(m: Model, x: Tensor) -> Tensor:
    h = m.a(x.clone())
    write(h, x)
    return m.b(h) * x


def saved(m: Model, x: Tensor) -> Tensor:
    h = torch.tanh(m.a(x))
    cut()
    h.mul_(2)
    return m.b(h)


def batch_that_is_saved(m: Model, x: Tensor) -> Tensor:
    h = m.a(x)
    cut()
    x.mul_(2)
    return m.b(h) * x


def one_of_several_views(m: Model, x: Tensor) -> Tensor:
    first, second = m.a(x).chunk(2, -1)
    cut()
    first.mul_(2)
    return first * second


def out_with_gradient(m: Model, x: Tensor) -> Tensor:
    h = m.a(x)
    cut()
    torch.add(x, 1, out=h)
    return m.b(h)


def leaf(m: Model, x: Tensor) -> Tensor:
    x.requires_grad_()
    h = m.a(x)
    cut()
    x.mul_(2)
    return m.b(h)


ONCE = [
    *(item, product, by_indices, masked_fill, masked_parameter, out, view_made_behind, view_made_before),
    *(base_of_expanded, used_on_both_sides, two_breaks, without_gradients, gets_a_gradient, part_gets_a_gradient),
    *(replaced, dropout, relu, batch, batch_behind, batch_gets_a_gradient, parameter, attribute, between_graphs),
]


def train(model: nn.Module, x: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """The loss, and the batch behind it."""
    torch.manual_seed(number)
    model.zero_grad()
    given = x.clone()
    loss = model(given).square().sum()
    loss.backward()
    return loss.detach(), given.detach()


@pytest.mark.fast(2)
@pytest.mark.parametrize("forward", ONCE)
def test_each_write_happens_once_with_eagers_bits(forward: Forward) -> None:
    torch.manual_seed(0)
    model, x = Model(forward), torch.randn(16, 64)
    eager = copy.deepcopy(model)
    graphopt.optimize(model, "1MiB", cost_model="roofline")
    for number in range(3):
        for one, other in zip(train(model, x, number), train(eager, x, number), strict=True):
            assert torch.equal(one, other)
        assert same_gradients(model, eager)
        assert torch.equal(model.moving, eager.moving)
        assert torch.equal(model.cache, eager.cache)
        assert torch.equal(model.count, eager.count)
    assert len(model.graphopt.session.graphs) >= 2


@pytest.mark.parametrize(
    ("forward", "said"),
    [
        (saved, "modified by an inplace operation"),
        (batch_that_is_saved, "modified by an inplace operation"),
        (one_of_several_views, "is a view and is being modified inplace"),
        (out_with_gradient, "don't support automatic differentiation"),
        (leaf, "a leaf Variable that requires grad is being used in an in-place operation"),
    ],
)
def test_what_eager_refuses_is_refused(forward: Forward, said: str) -> None:
    torch.manual_seed(0)
    model, x = Model(forward), torch.randn(16, 64)
    with pytest.raises(RuntimeError, match=said):
        train(copy.deepcopy(model), x, 0)
    graphopt.optimize(model, "1MiB", cost_model="roofline")
    with pytest.raises((RuntimeError, CaptureError), match=said):
        train(model, x, 0)


def test_one_of_several_that_is_met_late_does_not_write_twice() -> None:
    def branches(m: Model, x: Tensor) -> Tensor:
        x.add_(1)
        h = m.a(x)
        if x.sum().item() > 0:
            h = m.b(h)
        return h.mul_(2).square()

    torch.manual_seed(0)
    model, x = Model(branches), torch.randn(16, 64)
    eager = copy.deepcopy(model)
    graphopt.optimize(model, "1MiB", cost_model="roofline")
    for number, rows in enumerate((16, 8, 16, 8)):
        batch = x[:rows] * 0.01 - (1.5 if number in (1, 2) else 0.5)
        for one, other in zip(train(model, batch, number), train(eager, batch, number), strict=True):
            assert torch.equal(one, other)
        assert same_gradients(model, eager)


class Stack(nn.Module):
    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.model = Model(forward)
        for name in ("a", "b"):
            layers = [each for _ in range(3) for each in (nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64))]
            setattr(self.model, name, nn.Sequential(*layers))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).square().mean()


@pytest.mark.fast(1)
@pytest.mark.parametrize("forward", [item, view_made_before, gets_a_gradient, replaced])
def test_the_budget_holds(forward: Forward) -> None:
    torch.manual_seed(0)
    model, x = Stack(forward), torch.randn(256, 64)
    resident = [*model.parameters(), x]
    plan = graphopt.optimize(copy.deepcopy(model), "1GiB", example_inputs=x).graphopt.plan
    budget = (2 * plan.minimum_bytes + plan.eager_peak_bytes) // 3
    graphopt.optimize(model, budget)

    def step() -> None:
        model.zero_grad()
        model(x).backward()

    step()
    model.zero_grad()
    assert peak_bytes(step, resident, torch.device("cpu")) <= budget
    assert model.graphopt.plan.peak_bytes <= budget < plan.eager_peak_bytes


@pytest.mark.fast(1)
@pytest.mark.parametrize("kind", ["Wav2Vec2Model", "Wav2Vec2ForCTC"])
def test_wav2vec2_writes_its_mask(kind: str) -> None:
    """It draws the mask from NumPy, and writes a parameter into its hidden states."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    sizes |= {"conv_dim": (16, 16), "conv_stride": (5, 4), "conv_kernel": (10, 5), "vocab_size": 20}
    sizes |= {"num_feat_extract_layers": 2, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
    torch.manual_seed(0)
    # a layer that is dropped splits the graph, and rounds otherwise, as with torch.compile(backend="aot_eager")
    config = transformers.Wav2Vec2Config(**sizes, mask_time_prob=0.3, mask_time_length=2, layerdrop=0.0)
    model = getattr(transformers, kind)(config).train()
    eager, sound, labels = copy.deepcopy(model), torch.randn(2, 2000), torch.randint(1, 20, (2, 6))
    graphopt.optimize(model, "64MiB", cost_model="roofline")
    for number in range(2):
        losses = []
        for each in (model, eager):
            torch.manual_seed(number)
            np.random.seed(number)
            each.zero_grad()
            if kind == "Wav2Vec2ForCTC":
                losses.append(each(sound, labels=labels).loss)
            else:
                losses.append(each(sound).last_hidden_state.square().mean())
            losses[-1].backward()
        assert torch.equal(*losses)
        assert same_gradients(model, eager)

"""Random ops whose result nobody uses: they are run, as in eager, since later draws depend on it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import graphopt
from graphopt.passes.joint.split_dropout import split_dropout
from tests.support.joint import joint_graph, text_of

F = nn.functional
Draw = Callable[[Tensor], object]

DRAWS: dict[str, Draw] = {
    "dropout": lambda h: F.dropout(h, 0.2),
    "two dropouts": lambda h: F.dropout(F.dropout(h, 0.2), 0.3),
    "alpha_dropout": lambda h: F.alpha_dropout(h, 0.1),
    "dropout of no gradient": lambda h: F.dropout(h.detach(), 0.2),
    "attention": lambda h: F.scaled_dot_product_attention(h[None], h[None], h[None], dropout_p=0.3),
    "rrelu": lambda h: F.rrelu(h, training=True),
    "gumbel_softmax": lambda h: F.gumbel_softmax(h),
    "rand": lambda _: torch.rand(3),
    "rand, then more": lambda _: torch.rand(3).sin() + 1,
    "randn_like": torch.randn_like,
    "randint": lambda _: torch.randint(0, 5, (3,)),
    "randperm": lambda _: torch.randperm(5),
    "normal_": lambda h: h.new_empty(3).normal_(),
    "uniform_": lambda h: h.new_empty(3).uniform_(),
    "exponential_": lambda h: h.new_empty(3).exponential_(),
    "bernoulli": lambda h: torch.bernoulli(h.sigmoid()),
    "multinomial": lambda h: torch.multinomial(h.exp(), 2),
    "poisson": lambda h: torch.poisson(h.exp()),
    "normal": lambda h: torch.normal(h, 1.0),
}


class Unused(nn.Module):
    """Draws that nobody uses, between two that somebody does."""

    def __init__(self, *draws: str) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.draws = [DRAWS[name] for name in draws]

    def forward(self, x: Tensor) -> Tensor:
        h = F.dropout(self.first(x), 0.5)
        for draw in self.draws:
            draw(h)
        return F.dropout(self.second(h), 0.5).square().mean()


class Broken(Unused):
    """The graph ends behind the draws."""

    def forward(self, x: Tensor) -> Tensor:
        h = F.dropout(self.first(x), 0.5)
        for draw in self.draws:
            draw(h)
        torch._dynamo.graph_break()
        return F.dropout(self.second(h), 0.5).square().mean()


def step_of(model: nn.Module, run: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    """Loss, gradients, and the state in which the generator is left."""
    torch.manual_seed(7)
    loss = run(x)
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    return [loss.detach(), *(g for g in gradients if g is not None), torch.get_rng_state()]


@pytest.mark.fast(3)
@pytest.mark.parametrize(
    "model",
    [Unused("dropout"), Unused("rand"), Unused("normal_"), Unused(*DRAWS), Broken("dropout"), Broken(*DRAWS)],
    ids=["dropout", "rand", "normal_", "all", "dropout, break", "all, break"],
)
def test_the_generator_is_left_as_eager_leaves_it(model: nn.Module) -> None:
    torch._dynamo.reset()
    x = torch.randn(5, 4)
    eager = copy.deepcopy(model)
    expected = step_of(eager, eager, x)
    graphopt.optimize(model, "1GiB")
    assert all(map(torch.equal, step_of(model, model, x), expected))


def test_it_is_so_in_a_training_step() -> None:
    x = torch.randn(5, 4)
    model = Unused("dropout")
    eager = copy.deepcopy(model)
    step = graphopt.train_step(model, None, torch.optim.SGD(model.parameters(), lr=0.1), "1GiB", accumulate=1)
    torch.manual_seed(7)
    step(x)
    state = torch.get_rng_state()
    torch.manual_seed(7)
    eager(x).backward()
    torch.optim.SGD(eager.parameters(), lr=0.1).step()
    assert torch.equal(state, torch.get_rng_state())
    assert all(map(torch.equal, model.parameters(), eager.parameters()))


def test_it_is_so_where_memory_is_short() -> None:
    x = torch.randn(64, 4)
    model = Unused("dropout")
    eager = copy.deepcopy(model)
    expected = step_of(eager, eager, x)
    with pytest.raises(graphopt.BudgetError) as too_small:
        graphopt.optimize(model, "1KiB", example_inputs=(x,))
    graphopt.optimize(model, too_small.value.minimum_bytes, example_inputs=(x,))
    assert all(map(torch.equal, step_of(model, model, x), expected))


def test_of_a_dropout_that_nobody_uses_the_draw_alone_is_left() -> None:
    with torch._inductor.config.patch(fallback_random=True):
        joint, _ = joint_graph(Unused("dropout"), torch.randn(5, 4))
    assert text_of(joint.graph).count("= native_dropout.default(") == 3
    assert split_dropout(joint)
    text = text_of(joint.graph)
    assert text.count("= dropout_mask.default(") == 3 and text.count("= apply_dropout_mask.default(") == 2

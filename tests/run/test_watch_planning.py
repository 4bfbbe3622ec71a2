"""Steps in which something is captured or planned are measured like all others, to the byte."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import graphopt
from graphopt.device.measure import peak_bytes
from tests.support.residual_blocks import blocks


class InTwo(nn.Module):
    """Two graphs, the second of which may write a large buffer; it breaks everywhere, or for one shape only."""

    def __init__(self, *, only_of: int | None = None, writes: bool = False) -> None:
        super().__init__()
        self.first, self.second = blocks(2), blocks(2)
        self.only_of, self.writes = only_of, writes
        self.register_buffer("bank", torch.zeros(500, 64))
        self.norm = nn.BatchNorm1d(64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.first(x))
        if self.only_of in (None, len(x)):
            torch._dynamo.graph_break()
        if self.writes:
            self.bank[: len(x)] = x.detach()
        return self.second(x)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "one graph": blocks,
    "two graphs": InTwo,
    "two graphs of one shape": lambda: InTwo(only_of=96),
    "what is written is put back": lambda: InTwo(writes=True),
}


def there(model: nn.Module) -> list[torch.Tensor]:
    """What of a model is there when a step begins."""
    gradients = (parameter.grad for parameter in model.parameters())
    return [*model.parameters(), *model.buffers(), *(each for each in gradients if each is not None)]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_what_is_held_while_planning_hides_nothing(name: str, dynamic: bool) -> None:
    """States of generators were taken for what was there before, and hid as many bytes of the step: 5,056 each."""
    torch.manual_seed(0)
    model = graphopt.optimize(MODELS[name](), "64MiB", cost_model="roofline", dynamic=dynamic)
    for step, batch in enumerate((64, 64, 64, 96, 96, 80, 64)):
        if step % 3 != 1:  # gradients stay once
            model.zero_grad()
        x, begins = torch.randn(batch, 64), there(model)

        def trains(x: torch.Tensor = x) -> None:
            model(x).square().mean().backward()

        outside = peak_bytes(trains, [*begins, x], "cpu")
        assert model.graphopt.history[-1].measured_bytes == outside, step


def test_what_was_kept_to_be_put_back_goes_with_its_call() -> None:
    model, x = graphopt.optimize(InTwo(writes=True), "64MiB", cost_model="roofline"), torch.randn(64, 64)
    for _ in range(4):
        model.zero_grad()
        model(x).square().mean().backward()
    # held until the next step began, and freed in it, the copies hid 128,000 bytes from the second one on
    assert len({step.measured_bytes for step in model.graphopt.history}) == 1

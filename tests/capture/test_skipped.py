"""Where Dynamo captures nothing, the error says what it gave up, at which line, why, and the way out."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import graphopt
from graphopt.base.errors import CaptureError

cut = torch._dynamo.graph_break


class Model(nn.Module):
    def __init__(self, forward: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(2)))
        self.given = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.given(self.blocks, x)


def in_a_loop(blocks: nn.Sequential, x: Tensor) -> Tensor:
    for block in blocks:
        x = block(x)
        cut()  # here
    return x


def with_a_handle_that_is_kept(blocks: nn.Sequential, x: Tensor) -> Tensor:
    h = blocks(x)
    handle = h.register_hook(lambda grad: grad * 2)
    cut()  # here
    handle.remove()
    return h


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (in_a_loop, "graph_break"),
        (with_a_handle_that_is_kept, "Reconstruction failure"),
    ],
)
def test_the_line_and_the_reason_are_named(forward: Callable[..., Tensor], reason: str) -> None:
    lines, first = inspect.getsourcelines(forward)
    line = first + next(i for i, text in enumerate(lines) if "# here" in text)
    model = graphopt.optimize(Model(forward), "1MiB", cost_model="roofline")
    with pytest.raises(
        CaptureError, match=rf"{forward.__name__} was given up at .*test_skipped.py:{line} \(.*{reason}"
    ):
        model(torch.ones(8, 8))


def test_what_was_disabled_is_named() -> None:
    @torch._dynamo.disable
    def disabled(blocks: nn.Sequential, x: Tensor) -> Tensor:
        return blocks(x)

    model = graphopt.optimize(Model(disabled), "1MiB", cost_model="roofline")
    with pytest.raises(CaptureError, match=r"torch.compiler.disable.*test_skipped.py:25 in forward"):
        model(torch.ones(8, 8))


def test_a_loop_whose_body_is_a_method_is_captured() -> None:
    """The way out that the error names."""

    class Body(nn.Module):
        def __init__(self, block: nn.Module) -> None:
            super().__init__()
            self.block = block

        def forward(self, x: Tensor) -> Tensor:
            return self.block(x)

    def through_bodies(blocks: nn.Sequential, x: Tensor) -> Tensor:
        for block in blocks:
            x = block(x)
            cut()
        return x

    model = Model(through_bodies)
    model.blocks = nn.Sequential(*(Body(block) for block in model.blocks))
    graphopt.optimize(model, "1MiB", cost_model="roofline")
    model(torch.ones(8, 8)).sum().backward()
    assert len(model.graphopt.session.graphs) >= 1

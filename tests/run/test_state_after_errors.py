"""A forward that raises leaves the model and the generators as it does in eager, in its first call too."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import graphopt
from graphopt.base.errors import CaptureError


@torch._dynamo.disable  # type: ignore[untyped-decorator]
def refuse(error: type[BaseException]) -> None:
    raise error("bad batch")


class Fails(nn.Module):
    """Behind a graph break, where it `fails`."""

    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.norm, self.layer, self.last = nn.BatchNorm1d(16), nn.Linear(16, 16), nn.BatchNorm1d(16)
        self.register_buffer("calls", torch.zeros(()))
        self.count, self.seen, self.fails, self.error = 0, [0], False, error

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.seen.append(self.count)
        self.calls += 1
        x = self.layer(self.norm(x))
        x = x + torch.rand_like(x) + random.random() + float(np.random.rand())
        if self.fails:
            refuse(self.error)
        return self.last(x)  # type: ignore[no-any-return]


class InOnePiece(Fails):
    """Where it does not fail."""

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.calls += 1
        x = self.layer(self.norm(x))
        if self.fails:
            raise self.error("bad batch")
        return self.last(x)  # type: ignore[no-any-return]


def told(model: Fails, fails: bool) -> list[object]:
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    model.fails = fails
    try:
        model(torch.linspace(-1, 1, 128).reshape(8, 16)).sum().backward()
        ended = "well"
    except (ValueError, KeyboardInterrupt) as error:
        ended = str(error)
    drawn = (torch.rand(()).item(), random.random(), np.random.rand())
    state = {name: each.tolist() for name, each in model.state_dict().items()}
    return [ended, model.count, list(model.seen), state, drawn]


@pytest.mark.fast(1)
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("kind", [Fails, InOnePiece])
def test_state_is_eagers_after_an_error(kind: type[Fails], error: type[BaseException]) -> None:
    model = kind(error)
    eager = copy.deepcopy(model)
    graphopt.optimize(model, "1GiB", cost_model="roofline")
    for fails in (True, True, False, False, True, False):
        assert told(model, fails) == told(eager, fails)


def test_a_first_call_that_cannot_be_traced_leaves_the_model_as_it_was() -> None:
    class Mismatch(Fails):
        def forward(self, x: Tensor) -> Tensor:
            self.count += 1
            x = self.norm(x)
            torch._dynamo.graph_break()
            return x @ x if self.fails else self.last(x)  # type: ignore[no-any-return]

    model = graphopt.optimize(Mismatch(ValueError), "1GiB", cost_model="roofline")
    with pytest.raises(CaptureError):
        told(model, True)
    assert model.count == 0 and model.norm.num_batches_tracked == 0

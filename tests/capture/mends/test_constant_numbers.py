"""Numbers that change from call to call, where torch takes constants alone: guarded, and planned for each way."""

from __future__ import annotations

import collections
import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import InternalTorchDynamoError
from torch.nn import functional as F

import graphopt
from graphopt.capture.mends.constant_numbers import captured_with_constants
from tests.support.residual_blocks import same_gradients


class Counts(nn.Module):
    """What it does depends on how often it was called."""

    def __init__(self, work: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.work, self.n = nn.Linear(8, 8), work, 0

    def forward(self, x: Tensor) -> Tensor:
        self.n += 1
        return self.work(self, x)


class Given(nn.Module):
    """The number is an argument."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor, n: int) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=n > 2):
            return self.layer(x).float().square().sum()


def casts(model: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=model.n > 2):
        return model.layer(x).float().square().sum()


def keeps_casts(model: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=model.n > 2):
        return model.layer(x).float().square().sum() / model.n


def frozen(model: Any, x: Tensor) -> Tensor:
    with torch.set_grad_enabled(model.n % 2 == 1):
        h = model.layer(x).sin()
    return (model.layer(h) * model.n).square().sum()


def frozen_by_name(model: Any, x: Tensor) -> Tensor:
    with torch.set_grad_enabled(mode=model.n % 2 == 1):
        h = model.layer(x).sin()
    return (model.layer(h) * model.n).square().sum()


def frozen_by_call(model: Any, x: Tensor) -> Tensor:
    torch.set_grad_enabled(model.n % 2 == 1)
    h = model.layer(x).sin()
    torch.set_grad_enabled(True)
    return (model.layer(h) * model.n).square().sum()


def frozen_or_not(model: Any, x: Tensor) -> Tensor:
    with torch.no_grad() if model.n % 2 else torch.enable_grad():
        h = model.layer(x).sin()
    return (model.layer(h) * model.n).square().sum()


def infers(model: Any, x: Tensor) -> Tensor:
    with torch.inference_mode(model.n % 2 == 1):
        x.sin()
    return model.layer(x + model.n).square().sum()


def infers_by_name(model: Any, x: Tensor) -> Tensor:
    with torch.inference_mode(mode=model.n % 2 == 1):
        x.sin()
    return model.layer(x + model.n).square().sum()


def attends(model: Any, x: Tensor) -> Tensor:
    h = model.layer(x)[None]
    backends = [torch.nn.attention.SDPBackend.MATH, torch.nn.attention.SDPBackend.FLASH_ATTENTION]
    with torch.nn.attention.sdpa_kernel(backends, set_priority=model.n % 2 == 1):
        return F.scaled_dot_product_attention(h, h, h, is_causal=model.n % 2 == 1).square().sum()


def drops(model: Any, x: Tensor) -> Tensor:
    return model.layer(F.dropout(model.layer(x), training=model.n % 2 == 1)).square().sum()


def sums(model: Any, x: Tensor) -> Tensor:
    return model.layer(x).sum(dim=model.n % 2, keepdim=model.n > 2).square().sum()


def lengths(model: Any, x: Tensor) -> Tensor:
    return model.layer(x).square().sum() * len(collections.deque(range(9), maxlen=model.n))


def rounds(model: Any, x: Tensor) -> Tensor:
    return model.layer(x).square().sum() * round(1.23456789, model.n)


def as_factor(model: Any, x: Tensor) -> Tensor:
    return model.layer(x).square().sum() * (model.n > 2)


@pytest.mark.parametrize(
    ("work", "most"),
    [
        *((casts, 3), (keeps_casts, 3), (frozen, 3), (frozen_by_name, 3), (frozen_by_call, 3), (frozen_or_not, 3)),
        *((infers, 3), (infers_by_name, 3), (attends, 3), (drops, 3), (sums, 5), (as_factor, 2)),
        *((lengths, 5), (rounds, 5)),
    ],
)
def test_each_way_is_captured_once_with_eagers_bits(
    work: Callable[[Any, Tensor], Tensor], most: int, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    model, x = Counts(work), torch.randn(4, 8)
    eager = copy.deepcopy(model)
    caplog.set_level(logging.INFO, logger="graphopt")
    graphopt.optimize(model, "1GiB", cost_model="roofline")
    for step in range(5):
        losses = []
        for each in (eager, model):
            torch.manual_seed(step)
            each.zero_grad()
            loss = each(x)
            loss.backward()
            losses.append(loss.detach())
        assert torch.equal(*losses)
        assert same_gradients(eager, model)
    assert 2 <= sum("captured anew" in record.message for record in caplog.records) + 1 <= most


def test_an_argument_decides() -> None:
    torch.manual_seed(0)
    model, x = Given(), torch.randn(4, 8)
    eager = copy.deepcopy(model)
    graphopt.optimize(model, "1GiB", cost_model="roofline")
    for n in (1, 2, 3, 1, 5):
        for each in (eager, model):
            each.zero_grad()
            each(x, n).backward()
        assert same_gradients(eager, model)


def test_a_training_step_goes_on() -> None:
    torch.manual_seed(0)
    model, x = Counts(casts), torch.randn(4, 8)
    eager = copy.deepcopy(model)
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.001) for each in (eager, model)]
    step = graphopt.train_step(model, None, optimizers[1], "1GiB", example_inputs=x, cost_model="roofline")
    model.n = 0  # planning calls it once
    for _ in range(4):
        optimizers[0].zero_grad()
        loss = eager(x)
        loss.backward()
        optimizers[0].step()
        torch.testing.assert_close(step(x).loss, loss.detach(), rtol=1e-6, atol=0)


def test_what_fails_for_another_reason_fails_as_it_did() -> None:
    calls = []

    def capture() -> None:
        calls.append(torch._dynamo.config.specialize_int)
        raise InternalTorchDynamoError(f"failure {len(calls)}")

    with (
        torch._dynamo.config.patch(specialize_int=False),
        pytest.raises(InternalTorchDynamoError, match="failure 1"),
    ):
        captured_with_constants(capture)
    assert calls == [False, True]

"""Autocast, half parameters with float32 masters, double."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim

import graphopt
from tests.support.loops import EagerLoop, Pair, make_pair, state_of, ulps
from tests.support.models import Noisy, Perceptron, seeded, vectors
from tests.support.tensors import KINDS
from tests.support.zoo import differences

HALVES = [torch.bfloat16, torch.float16]


def adamw(parameters: Any) -> optim.Optimizer:
    return optim.AdamW(parameters, 1e-2, fused=True)


class Cast(nn.Module):
    """A model under autocast."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, *args: Any) -> Tensor:
        with torch.autocast("cpu", self.dtype):
            loss: Tensor = self.model(*args)
        return loss


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("how", ["keyword", "ambient", "model"])
def test_autocast_is_eagers(how: str, accumulate: int) -> None:
    ours, twin = seeded(Noisy)(), seeded(Noisy)()
    options: dict[str, Any] = {"accumulate": accumulate, "loss_scale": graphopt.DynamicLossScale(2.0**16)}
    model = Cast(ours, torch.bfloat16) if how == "model" else ours
    step = graphopt.train_step(
        model,
        None,
        adamw(ours.parameters()),
        autocast=torch.bfloat16 if how == "keyword" else None,
        cost_model="roofline",
        **options,
    )
    loop = EagerLoop(Cast(twin, torch.bfloat16), adamw(twin.parameters()), **options)
    for number, ((x, y), _) in enumerate(vectors(4)):
        torch.manual_seed(number)
        with graphopt.kernels.use("stock"), torch.autocast("cpu", torch.bfloat16, enabled=how == "ambient"):
            out = step(x, y)
        torch.manual_seed(number)
        loss, _ = loop(x, y)
        assert torch.equal(out.loss, loss) and out.loss.dtype == torch.float32
    assert differences(state_of(ours, step.optimizer), state_of(twin, loop.optimizer)) == {}


def test_entering_autocast_later_is_noticed() -> None:
    step = make_pair(seeded(Perceptron), lambda p: optim.SGD(p, 0.0)).step
    ((x, y), _) = vectors(1)[0]
    full = step(x, y).loss
    with torch.autocast("cpu", torch.bfloat16):
        half, expected = step(x, y).loss, step.model(x, y)
    assert torch.equal(half, expected) and not torch.equal(half, full)
    assert torch.equal(step(x, y).loss, full)


def by_hand(model: nn.Module, masters: list[Tensor], optimizer: Any, batches: Any, accumulate: int) -> None:
    """Half parameters with float32 masters, as one would write it: gradients add up in float32."""
    for (x, y), _ in batches:
        sums = [torch.zeros_like(master) for master in masters]
        for a, b in zip(x.chunk(accumulate), y.chunk(accumulate), strict=True):
            gradients = torch.autograd.grad(model(a, b).float() / accumulate, list(model.parameters()))
            for total, gradient in zip(sums, gradients, strict=True):
                total += gradient
        for master, total in zip(masters, sums, strict=True):
            master.grad = total
        optimizer.step()
        with torch.no_grad():
            for parameter, master in zip(model.parameters(), masters, strict=True):
                parameter.copy_(master)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("kernels", KINDS)
def test_masters_are_those_of_the_loop_by_hand(dtype: torch.dtype, accumulate: int, kernels: Any) -> None:
    ours, twin = seeded(Perceptron)().to(dtype), seeded(Perceptron)().to(dtype)
    batches = vectors(5, dtype=dtype)
    masters = [nn.Parameter(p.detach().float()) for p in twin.parameters()]
    by_hand(twin, masters, adamw(masters), batches, accumulate)
    step = graphopt.train_step(ours, None, adamw(ours.parameters()), accumulate=accumulate, masters=True)
    with graphopt.kernels.use(kernels):
        for (x, y), _ in batches:
            step(x, y)
    held = step.optimizer.param_groups[0]["params"]
    assert all(master.dtype == torch.float32 for master in held)
    for ours_master, other, parameter in zip(held, masters, ours.parameters(), strict=True):
        # own kernels round otherwise than torch's; float32 sums of half products do not differ
        assert ulps(ours_master, other) <= (0 if kernels == "stock" else 8)
        assert torch.equal(parameter, ours_master.to(dtype))


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_skipped_step_leaves_masters_and_copies(accumulate: int) -> None:
    model = seeded(Perceptron)().half()
    step = graphopt.train_step(
        model,
        None,
        adamw(model.parameters()),
        accumulate=accumulate,
        masters=True,
        loss_scale=graphopt.DynamicLossScale(2.0**10),
    )
    batches = vectors(2, dtype=torch.float16)
    assert not step(*batches[0][0]).skipped
    held = step.optimizer.param_groups[0]["params"]
    before = [t.detach().clone() for t in (*held, *model.parameters())]
    batches[1][0][0][3, 3] = float("inf")
    assert step(*batches[1][0]).skipped
    assert all(torch.equal(a, b) for a, b in zip(before, (*held, *model.parameters()), strict=True))
    assert step.loss_scale == 2.0**9


class Steep(nn.Module):
    """Gradients of 60,000 each: their norm is beyond float16, they are not."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight * x).sum()


@pytest.mark.parametrize("kernels", KINDS)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_norm_beyond_float16_is_a_norm(accumulate: int, kernels: Any) -> None:
    model = Steep().half()
    optimizer = optim.SGD(model.parameters(), 1.0)
    step = graphopt.train_step(
        model,
        None,
        optimizer,
        masters=True,
        clip=graphopt.ClipNorm(1.0),
        accumulate=accumulate,
        loss_scale=graphopt.ConstantLossScale(1.0),
    )
    with graphopt.kernels.use(kernels):
        out = step(torch.full((4, 4) if accumulate == 1 else (2, 4, 4), 6e4, dtype=torch.float16))
    assert not out.skipped
    assert float(out.grad_norm) == pytest.approx(4 * float(torch.tensor(6e4, dtype=torch.float16)), rel=1e-6)  # type: ignore[arg-type]
    master = optimizer.param_groups[0]["params"][0]
    assert torch.allclose(master, torch.full((4, 4), 0.75), rtol=1e-6)


@pytest.mark.parametrize("scale", [None, graphopt.DynamicLossScale(2.0**16)])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_double_is_double(accumulate: int, scale: Any) -> None:
    def build() -> nn.Module:
        return seeded(Perceptron)().double()

    pair = make_pair(build, adamw, accumulate=accumulate, loss_scale=scale, clip=graphopt.ClipNorm(1e9))
    pair.run(vectors(5, dtype=torch.float64), exactly=False)
    assert pair.differences() == {}
    assert all(p.dtype == torch.float64 for p in pair.step.model.parameters())


@pytest.mark.parametrize("dtype", HALVES)
def test_half_parameters_without_masters_are_the_optimizers(dtype: torch.dtype) -> None:
    pair: Pair = make_pair(lambda: seeded(Perceptron)().to(dtype), adamw)
    pair.run(vectors(4, dtype=dtype), exactly=False)
    assert pair.differences() == {}


def test_masters_come_before_the_first_step() -> None:
    model = seeded(Perceptron)().bfloat16()
    optimizer = adamw(model.parameters())
    graphopt.train_step(model, None, optimizer)(*vectors(1, dtype=torch.bfloat16)[0][0])
    with pytest.raises(graphopt.UsageError, match="has not stepped yet"):
        graphopt.train_step(model, None, optimizer, masters=True)

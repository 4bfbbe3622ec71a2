"""Clipping that binds, against torch.nn.utils: where rounding differs, by how much."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import nn, optim

import graphopt
from tests.support.loops import make_pair, ulps
from tests.support.models import Perceptron, seeded, vectors
from tests.support.tensors import KINDS

SCALED = graphopt.DynamicLossScale(2.0**8)


def two_groups(parameters: Iterable[nn.Parameter]) -> optim.Optimizer:
    """Each with options of its own."""
    first = list(parameters)
    second = [first.pop(), first.pop()]
    return optim.SGD([{"params": first, "lr": 0.5}, {"params": second, "lr": 0.25, "momentum": 0.5}], 0.1)


@pytest.mark.parametrize("kernels", KINDS)
@pytest.mark.parametrize(("scale", "per_group"), [(None, False), (SCALED, True)], ids=["whole", "scaled, per group"])
@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, float("inf")])
def test_clipping_by_norm_is_torchs(norm_type: float, scale: Any, per_group: bool, kernels: Any) -> None:
    clip = graphopt.ClipNorm(0.01, norm_type, per_group=per_group)
    pair = make_pair(seeded(Perceptron), two_groups, clip=clip, loss_scale=scale, accumulate=2)
    pair.kernels = kernels
    (args, _) = vectors(1)[0]
    _, norm = pair.loop(*args)
    with graphopt.kernels.use(kernels):
        out = pair.step(*args)
    assert norm is not None and out.grad_norm is not None and out.grad_norm.shape == norm.shape
    assert (norm > 0.02).all(), "it does not bind"
    # the norm adds up in another order, and factor and 1/scale are one number here: a few roundings
    assert ulps(out.grad_norm, norm) <= 4
    for ours, other in zip(pair.step.model.parameters(), pair.loop.model.parameters(), strict=True):
        assert ulps(ours, other) <= 1


@pytest.mark.parametrize("kernels", KINDS)
@pytest.mark.parametrize(("accumulate", "scale"), [(1, None), (2, SCALED)], ids=["at once", "accumulated, scaled"])
def test_clipping_by_value_is_torchs(accumulate: int, scale: Any, kernels: Any) -> None:
    clip = graphopt.ClipValue(1e-2)
    pair = make_pair(
        seeded(Perceptron),
        lambda p: optim.AdamW(p, 0.01, fused=True),
        clip=clip,
        loss_scale=scale,
        accumulate=accumulate,
    )
    pair.kernels = kernels
    pair.run(vectors(4), exactly=kernels == "stock")
    found = pair.differences()
    assert found == {} if kernels == "stock" else max(found.values(), default=0.0) < 1e-6


def test_a_norm_that_does_not_bind_changes_nothing() -> None:
    plain = make_pair(seeded(Perceptron), two_groups)
    clipped = make_pair(seeded(Perceptron), two_groups, clip=graphopt.ClipNorm(1e6))
    with graphopt.kernels.use("stock"):
        for (x, y), _ in vectors(3):
            plain.step(x, y), clipped.step(x, y)
    for one, other in zip(plain.step.model.parameters(), clipped.step.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_nobody_asked_for_a_norm() -> None:
    (args, _) = vectors(1)[0]
    assert make_pair(seeded(Perceptron), two_groups).step(*args).grad_norm is None
    assert make_pair(seeded(Perceptron), two_groups, loss_scale=SCALED).step(*args).grad_norm is None

"""The loss_scale pass: scaled tangents, one check, a scale that moves last."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx, optim

from graphopt import kernels
from graphopt.base.errors import UsageError
from graphopt.passes.window.clip import ClipNorm, clip
from graphopt.passes.window.loss_scale import ConstantLossScale, DynamicLossScale, LossScale, loss_scale
from graphopt.passes.window.update import GroupUpdate, update
from tests.support.joint import text_of
from tests.support.small_window import feeds, run_eager, small_window

FLAGS = (("nesterov", False), ("maximize", False), ("first", True))
OPTIONS: dict[str, Any] = {"lr": 0.5, "momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0}


def updated() -> fx.GraphModule:
    window = small_window()
    update(window, [GroupUpdate(0, "sgd", ("a", "b"), FLAGS)])
    return window


def scaling(scale: float) -> dict[str, torch.Tensor]:
    trackers = {"growth_tracker": 0, "hysteresis_tracker": 1}
    return {"scale": torch.tensor(scale), **{k: torch.tensor(v, dtype=torch.int32) for k, v in trackers.items()}}


def test_tangents_are_scaled_and_gradients_checked_where_they_update() -> None:
    window = updated()
    before = text_of(window.graph).splitlines()
    assert loss_scale(window, ConstantLossScale(8.0))
    lines = text_of(window.graph).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("sum_default"))
    assert lines[start + 1 :] == [
        "mul_tensor_5 = mul.Tensor(scale, weight_0)",
        "mul_tensor_2 = mul.Tensor(mul_tensor_5, x)",
        "mul_tensor_3 = mul.Tensor(b, 2)",
        "mul_tensor_4 = mul.Tensor(mul_tensor_5, mul_tensor_3)",
        "gradient_norm_default = gradient_norm.default([mul_tensor_2, mul_tensor_4], inf)",
        "getitem = getitem(gradient_norm_default, 1)",
        "_to_copy_default = _to_copy.default(scale, dtype=torch.float64)",
        "reciprocal_default = reciprocal.default(_to_copy_default)",
        "_to_copy_default_1 = _to_copy.default(reciprocal_default, dtype=torch.float32)",
        before[-2].replace("first=True", "first=True, inverse_scale=_to_copy_default_1, found_inf=getitem"),
        "return (sum_default, None, getitem, [])",
    ]


def test_the_norm_is_unscaled_and_its_read_is_the_check() -> None:
    window = updated()
    clip(window, ClipNorm(1.0))
    assert loss_scale(window, ConstantLossScale(8.0))
    text = text_of(window.graph)
    assert text.count("gradient_norm.default") == 1
    assert "mul_tensor_6 = mul.Tensor(getitem, _to_copy_default_1)\nclip_factor_default" in text
    assert "clip_factor.default(mul_tensor_6, 1.0)" in text
    assert text.endswith("return (sum_default, mul_tensor_6, getitem_1, [])")


def test_a_dynamic_scale_moves_last() -> None:
    window = updated()
    assert loss_scale(window, DynamicLossScale(8.0, interval=5))
    assert text_of(window.graph).splitlines()[-2] == (
        "scale_update__default = scale_update_.default(scale, growth_tracker, hysteresis_tracker, getitem, growth=2.0, "
        "backoff=0.5, interval=5, hysteresis=1, lowest=5.960464477539063e-08, highest=16777216.0)"
    )


@pytest.mark.parametrize("how", [ConstantLossScale(8.0), DynamicLossScale(8.0)])
def test_a_second_run_or_nothing_to_update_changes_nothing(how: LossScale) -> None:
    window = updated()
    loss_scale(window, how)
    text = text_of(window.graph)
    assert not loss_scale(window, how) and text_of(window.graph) == text
    bare = small_window()
    text = text_of(bare.graph)
    assert not loss_scale(bare, how) and text_of(bare.graph) == text


@pytest.mark.parametrize("scale", [1.0, 0.125, 2.0**20])
def test_values_are_eagers(scale: float) -> None:
    window = updated()
    loss_scale(window, DynamicLossScale(scale, interval=1))
    given = {name: torch.randn(5) for name in "abx"}
    expected = run_eager(given, lambda p: optim.SGD(p, fused=True, **OPTIONS))
    state = scaling(scale)
    with kernels.use("stock"):
        _, _, found_inf, _ = window(*feeds(window, given, OPTIONS, **state))
    assert float(found_inf) == 0.0 and float(state["scale"]) == 2 * scale
    assert all(torch.equal(given[name], expected[name]) for name in "ab")


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_an_overflow_updates_nothing_but_the_scale(value: float) -> None:
    window = updated()
    loss_scale(window, DynamicLossScale(8.0))
    given = {"a": torch.ones(3), "b": torch.tensor([1.0, value, 1.0]), "x": torch.ones(3)}
    before, state = {k: v.clone() for k, v in given.items()}, scaling(8.0)
    _, _, found_inf, _ = window(*feeds(window, given, OPTIONS, **state))
    assert float(found_inf) == 1.0 and float(state["scale"]) == 4.0
    assert all(torch.equal(given[k], before[k]) or k == "b" for k in given)
    assert torch.equal(given["b"][::2], before["b"][::2])


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: ConstantLossScale(0.0),
        lambda: ConstantLossScale(float("inf")),
        lambda: DynamicLossScale(-1.0),
        lambda: DynamicLossScale(growth=1.0),
        lambda: DynamicLossScale(backoff=1.0),
        lambda: DynamicLossScale(interval=0),
        lambda: DynamicLossScale(hysteresis=0),
        lambda: DynamicLossScale(8.0, lowest=16.0),
        lambda: DynamicLossScale(8.0, highest=4.0),
    ],
)
def test_what_cannot_be_a_scale_is_refused(wrong: Any) -> None:
    with pytest.raises(UsageError, match="LossScale"):
        wrong()

"""The clip pass: a norm or a limit, folded into what updates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx, nn, optim

from graphopt import kernels
from graphopt.base.errors import NonFiniteGradientError, UsageError
from graphopt.passes.window.clip import Clip, ClipNorm, ClipValue, clip
from graphopt.passes.window.update import GroupUpdate, update
from tests.support.joint import text_of
from tests.support.small_window import feeds, run_eager, small_window

FLAGS = (("nesterov", False), ("maximize", False), ("first", True))
OPTIONS: dict[str, Any] = {"lr": 0.5, "momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0}


def updated(*groups: tuple[str, ...]) -> fx.GraphModule:
    window = small_window()
    update(window, [GroupUpdate(number, "sgd", names, FLAGS) for number, names in enumerate(groups)])
    return window


def tail(window: fx.GraphModule) -> list[str]:
    """The lines behind the gradients."""
    lines = text_of(window.graph).splitlines()
    return lines[lines.index("mul_tensor_4 = mul.Tensor(scalar_tensor_default, mul_tensor_3)") + 1 :]


def test_a_norm_is_read_once_and_becomes_a_factor() -> None:
    window = updated(("a", "b"))
    before = tail(window)
    assert clip(window, ClipNorm(1.5))
    assert tail(window) == [
        "gradient_norm_default = gradient_norm.default([mul_tensor_2, mul_tensor_4], 2.0)",
        "getitem = getitem(gradient_norm_default, 0)",
        "clip_factor_default = clip_factor.default(getitem, 1.5)",
        before[0].replace("first=True", "first=True, factor=clip_factor_default"),
        "return (sum_default, getitem, None, [])",
    ]


def test_all_norms_are_known_and_finite_before_the_first_write() -> None:
    window = updated(("a",), ("b",))
    assert clip(window, ClipNorm(1.5, 1.0, per_group=True, error_if_nonfinite=True))
    names = [line.partition(" = ")[2].partition("(")[0] for line in tail(window)]
    assert names == [
        *["gradient_norm.default", "getitem"] * 2,
        *["require_finite.default"] * 2,
        *["clip_factor.default"] * 2,
        "stack.default",
        *["sgd_.default"] * 2,
        "",
    ]
    assert tail(window)[-1] == "return (sum_default, stack_default, None, [])"


def test_a_limit_is_an_argument_of_the_update() -> None:
    window = updated(("a", "b"))
    before = tail(window)
    assert clip(window, ClipValue(0.25))
    assert tail(window) == [before[0].replace("first=True", "first=True, clip_value=0.25"), before[1]]


@pytest.mark.parametrize("how", [ClipNorm(1.0), ClipValue(1.0)])
def test_a_second_run_or_nothing_to_clip_changes_nothing(how: Clip) -> None:
    window = updated(("a", "b"))
    clip(window, how)
    text = text_of(window.graph)
    assert not clip(window, ClipNorm(1.0)) and not clip(window, ClipValue(1.0)) and text_of(window.graph) == text
    bare = small_window()
    text = text_of(bare.graph)
    assert not clip(bare, how) and text_of(bare.graph) == text


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, float("inf")])
@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_values_are_eagers(norm_type: float, max_norm: float) -> None:
    window = updated(("a", "b"))
    clip(window, ClipNorm(max_norm, norm_type))
    given = {name: torch.randn(5) for name in "abx"}
    norms: list[torch.Tensor] = []

    def by_hand(parameters: list[torch.Tensor]) -> None:
        norms.append(nn.utils.clip_grad_norm_(parameters, max_norm, norm_type))

    expected = run_eager(given, lambda p: optim.SGD(p, fused=True, **OPTIONS), by_hand)
    with kernels.use("stock"):
        _, norm, _, _ = window(*feeds(window, given, OPTIONS))
    assert torch.equal(norm, norms[0])
    for name in "ab":  # a factor that binds is one rounding more
        assert torch.allclose(given[name], expected[name], rtol=0, atol=3e-7 if max_norm < 1 else 0)


def test_a_limit_is_eagers() -> None:
    window = updated(("a", "b"))
    clip(window, ClipValue(0.3))
    given = {name: torch.randn(5) for name in "abx"}
    expected = run_eager(
        given, lambda p: optim.SGD(p, fused=True, **OPTIONS), lambda p: nn.utils.clip_grad_value_(p, 0.3)
    )
    with kernels.use("stock"):
        window(*feeds(window, given, OPTIONS))
    assert all(torch.equal(given[name], expected[name]) for name in "ab")


def test_what_is_not_finite_is_an_error_that_writes_nothing() -> None:
    window = updated(("a",), ("b",))
    clip(window, ClipNorm(1.0, per_group=True, error_if_nonfinite=True))
    given = {"a": torch.ones(3), "b": torch.tensor([1.0, float("inf"), 1.0]), "x": torch.ones(3)}
    with pytest.raises(NonFiniteGradientError, match="norm of the gradients is inf"):
        window(*feeds(window, given, OPTIONS))
    assert torch.equal(given["a"], torch.ones(3))


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan")])
def test_limits_are_positive_numbers(wrong: float) -> None:
    for make in (lambda: ClipNorm(wrong), lambda: ClipNorm(1.0, wrong), lambda: ClipValue(wrong)):
        with pytest.raises(UsageError, match="must be a positive number"):
            make()

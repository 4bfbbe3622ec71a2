"""The update pass: the optimizer's step at the end of a window."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import optim

from graphopt import kernels
from graphopt.passes.window.update import GroupUpdate, update
from tests.support.joint import text_of
from tests.support.small_window import feeds, run_eager, small_window

SGD = GroupUpdate(0, "sgd", ("a", "b", "unused"), (("nesterov", False), ("maximize", False), ("first", True)))
BEFORE = text_of(small_window().graph)


def test_the_window_before_any_pass() -> None:
    assert BEFORE == (
        "a: input\n"
        "b: input\n"
        "x: input\n"
        "weight_0: input\n"
        "mul_tensor = mul.Tensor(a, x)\n"
        "mul_tensor_1 = mul.Tensor(b, b)\n"
        "add_tensor = add.Tensor(mul_tensor, mul_tensor_1)\n"
        "sum_default = sum.default(add_tensor)\n"
        "scalar_tensor_default = scalar_tensor.default(weight_0, dtype=torch.float32)\n"
        "mul_tensor_2 = mul.Tensor(scalar_tensor_default, x)\n"
        "mul_tensor_3 = mul.Tensor(b, 2)\n"
        "mul_tensor_4 = mul.Tensor(scalar_tensor_default, mul_tensor_3)\n"
        "return (sum_default, None, None, [mul_tensor_2, mul_tensor_4])"
    )


def test_sgd_is_one_op_on_the_parameters_that_have_a_gradient() -> None:
    window = small_window()
    assert update(window, [SGD])
    body = text_of(window.graph).split("mul_tensor_4 = ")[1]
    assert body == (
        "mul.Tensor(scalar_tensor_default, mul_tensor_3)\n"
        "sgd__default = sgd_.default(params=[a, b], gradients=[mul_tensor_2, mul_tensor_4], momentum_buffers=[], "
        "copies=[], lr=lr_of_group_0, momentum=momentum_of_group_0, dampening=dampening_of_group_0, "
        "weight_decay=weight_decay_of_group_0, nesterov=False, maximize=False, first=True)\n"
        "return (sum_default, None, None, [])"
    )


def test_adam_has_a_state_for_each_parameter_and_an_op_for_each_group() -> None:
    flags = (("amsgrad", False), ("maximize", False), ("decoupled", True))
    state = ("exp_avg", "exp_avg_sq", "step")
    window = small_window()
    assert update(window, [GroupUpdate(i, "adam", (name,), flags, state) for i, name in enumerate("ab")])
    last = text_of(window.graph).splitlines()[-2]
    assert last == (
        "adam__default_1 = adam_.default(params=[b], gradients=[mul_tensor_4], exp_avgs=[exp_avg_b], "
        "exp_avg_sqs=[exp_avg_sq_b], max_exp_avg_sqs=[], steps=[step_b], copies=[], lr=lr_of_group_1, "
        "beta1=beta1_of_group_1, beta2=beta2_of_group_1, weight_decay=weight_decay_of_group_1, eps=eps_of_group_1, "
        "amsgrad=False, maximize=False, decoupled=True)"
    )


def test_masters_are_updated_and_parameters_copied_from_them() -> None:
    window = small_window()
    masters = frozenset({"b"})
    assert update(window, [GroupUpdate(0, "sgd", ("a", "b"), SGD.flags, (), masters)])
    text = text_of(window.graph)
    assert "params=[a], gradients=[mul_tensor_2], momentum_buffers=[], copies=[]" in text
    assert "params=[master_b], gradients=[mul_tensor_4], momentum_buffers=[], copies=[b]" in text


def test_another_optimizer_gets_the_gradients() -> None:
    window = small_window()
    assert update(window, [GroupUpdate(0, "step", ("a", "b"))])
    assert text_of(window.graph).splitlines()[-2:] == [
        "finish_gradients__default = finish_gradients_.default(gradients=[mul_tensor_2, mul_tensor_4])",
        "return (sum_default, None, None, [mul_tensor_2, mul_tensor_4])",
    ]


@pytest.mark.parametrize("groups", [[], [GroupUpdate(0, "sgd", ("unused",), SGD.flags)]])
def test_nothing_to_update_nothing_changed(groups: list[GroupUpdate]) -> None:
    window = small_window()
    assert not update(window, groups)
    assert text_of(window.graph) == BEFORE


def test_a_second_run_changes_nothing() -> None:
    window = small_window()
    update(window, [SGD])
    text = text_of(window.graph)
    assert not update(window, [SGD]) and text_of(window.graph) == text


def test_values_are_eagers() -> None:
    window = small_window()
    update(window, [SGD])
    options: dict[str, Any] = {"lr": 0.1, "momentum": 0.0, "dampening": 0.0, "weight_decay": 0.01}
    given = {name: torch.randn(5) for name in "abx"}
    expected = run_eager(given, lambda p: optim.SGD(p, fused=True, **options))
    with kernels.use("stock"):
        window(*feeds(window, given, options))
    assert all(torch.equal(given[name], expected[name]) for name in "ab")

"""The accumulate pass: gradients go into their sums where the backward makes them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from graphopt.passes.joint.accumulate import accumulate
from tests.support.joint import joint_graph, text_of
from tests.support.small_models import Linear
from tests.support.tensors import ulps

#: Positions among the joint graph's inputs.
WEIGHT, BIAS = 0, 2


def test_a_product_is_added_into_the_sum_and_never_exists() -> None:
    joint, _ = joint_graph(Linear(), torch.randn(2, 3))
    assert text_of(joint.graph) == (
        "primals_1: input\n"
        "primals_2: input\n"
        "primals_3: input\n"
        "tangents_1: input\n"
        "t = t.default(primals_1)\n"
        "mm = mm.default(primals_2, t)\n"
        "add = add.Tensor(mm, primals_3)\n"
        "sum_1 = sum.default(add)\n"
        "expand = expand.default(tangents_1, [2, 4])\n"
        "sum_2 = sum.dim_IntList(expand, [0], True)\n"
        "view = view.default(sum_2, [4])\n"
        "t_1 = t.default(expand)\n"
        "mm_1 = mm.default(t_1, primals_2)\n"
        "t_2 = t.default(mm_1)\n"
        "t_3 = t.default(t_2)\n"
        "return [sum_1, t_3, None, view]"
    )
    assert accumulate(joint, [WEIGHT, BIAS])
    assert text_of(joint.graph) == (
        "primals_1: input\n"
        "primals_2: input\n"
        "primals_3: input\n"
        "tangents_1: input\n"
        "beta: input\n"
        "accumulator_primals_1: input\n"
        "accumulator_primals_3: input\n"
        "t = t.default(primals_1)\n"
        "mm = mm.default(primals_2, t)\n"
        "add = add.Tensor(mm, primals_3)\n"
        "sum_1 = sum.default(add)\n"
        "expand = expand.default(tangents_1, [2, 4])\n"
        "sum_2 = sum.dim_IntList(expand, [0], True)\n"
        "view = view.default(sum_2, [4])\n"
        "accumulate__default = accumulate_.default(accumulator_primals_3, view, beta)\n"
        "t_1 = t.default(expand)\n"
        "accumulate_mm__default = accumulate_mm_.default(accumulator_primals_1, t_1, primals_2, beta)\n"
        "return (sum_1, None, None, None)"
    )
    assert not accumulate(joint, [WEIGHT, BIAS])


def test_a_product_that_is_made_first_is_a_gradient_like_others() -> None:
    joint, _ = joint_graph(Linear(), torch.randn(2, 3))
    assert accumulate(joint, [WEIGHT, BIAS], fuse_products=False)
    text = text_of(joint.graph)
    assert "mm_1 = mm.default(t_1, primals_2)\n" in text and "accumulate_mm_" not in text
    assert "accumulate_.default(accumulator_primals_1, t_3, beta)\n" in text


class Turned(nn.Module):
    """A weight laid out column by column: autograd makes its gradient turned over, and turns it back."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3).t())

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.weight).sum()


def test_a_product_turned_over_goes_into_the_sum_turned_over() -> None:
    joint, _ = joint_graph(Turned(), torch.randn(2, 3))
    assert accumulate(joint, [WEIGHT])
    text = text_of(joint.graph)
    assert text.count("= mm.default(") == 1, "the forward's own product stays"
    assert "t_default = t.default(accumulator_primals_1)\n" in text and "accumulate_mm_.default(t_default, " in text


def test_what_is_not_wanted_is_not_computed() -> None:
    joint, _ = joint_graph(Linear(), torch.randn(2, 3))
    assert accumulate(joint, [BIAS])
    assert "mm_1" not in text_of(joint.graph) and "accumulator_primals_1" not in text_of(joint.graph)


def test_nothing_to_accumulate_nothing_changed() -> None:
    joint, _ = joint_graph(Linear(), torch.randn(2, 3))
    accumulate(joint, [])
    text = text_of(joint.graph)
    assert not accumulate(joint, [WEIGHT]) and text_of(joint.graph) == text


class Read(nn.Module):
    """The product that is the first weight's gradient is read by another, too."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return ((x @ self.weight) @ self.weight).sum()


class Loss(nn.Module):
    """The sum of what a model computes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).sum()  # type: ignore[no-any-return]


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "build", [Linear, Read, Turned, lambda: nn.Conv1d(3, 4, 2)], ids=["linear", "read twice", "turned", "conv"]
)
def test_sums_are_eagers(build: Callable[[], nn.Module], dtype: torch.dtype, fuse: bool) -> None:
    """To the bit, but for products that the CPU's BLAS adds up in another order: 0.6 ulps were measured."""
    model = Loss(build()).to(dtype)
    inputs = torch.randn(3, 2, 3, 3).to(dtype)
    joint, _ = joint_graph(model, inputs[0])
    trained = list(joint.gradients)
    shapes = [node.meta["val"].shape for node in joint.graph.find_nodes(op="placeholder")]
    parameters = {shape: p for p in model.parameters() for shape in (p.shape,)}
    assert accumulate(joint, trained, fuse_products=fuse)
    # what a sum held before is never read
    sums = [torch.full(shapes[position], float("nan")) for position in trained]
    expected = [torch.zeros(shapes[position]) for position in trained]
    for number, x in enumerate(inputs):
        primals = [parameters.get(shape, x).detach() for shape in shapes[: len(joint.primals)]]
        arguments = [*primals, torch.ones((), dtype=dtype), float(number > 0), *sums]
        fx.Interpreter(joint.module).run(*arguments, enable_io_processing=False)
        gradients = torch.autograd.grad(model(x), [parameters[shapes[position]] for position in trained])
        for total, gradient in zip(expected, gradients, strict=True):
            total += gradient
    fused = "accumulate_mm_" in text_of(joint.graph) and dtype == torch.float32
    assert max(map(ulps, sums, expected)) <= (4 if fused else 0)

"""Each pass: the graph's text before and after, a second run that changes nothing, values equal to eager's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from graphopt.passes.joint.free_shapes import free_shapes
from graphopt.passes.joint.own_gradients import own_gradients
from graphopt.passes.joint.skip_copies import skip_copies
from graphopt.passes.joint.specialize import specialize
from graphopt.passes.joint.split_dropout import split_dropout
from graphopt.verify.step_result import differences, run_step
from tests.support.joint import joint_graph, text_of


def _leaves(result: object) -> list[torch.Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(result) if leaf is not None]


class Dropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(x @ self.weight, 0.5).sum()


def test_split_dropout_draws_the_mask_apart() -> None:
    joint, _, _ = joint_graph(Dropout(), torch.randn(3, 4))
    assert "native_dropout = native_dropout.default(mm, 0.5, True)\ngetitem = getitem(native_dropout, 0)" in text_of(
        joint.graph
    )
    assert split_dropout(joint)
    assert text_of(joint.graph) == (
        "primals_1: input\n"
        "primals_2: input\n"
        "tangents_1: input\n"
        "mm = mm.default(primals_2, primals_1)\n"
        "dropout_mask = dropout_mask.default([3, 4], [4, 1], 0.5, device=cpu)\n"
        "dropout = apply_dropout_mask.default(mm, dropout_mask, 0.5)\n"
        "sum_1 = sum.default(dropout)\n"
        "expand = expand.default(tangents_1, [3, 4])\n"
        "native_dropout_backward = native_dropout_backward.default(expand, dropout_mask, 2.0)\n"
        "t = t.default(primals_2)\n"
        "mm_1 = mm.default(t, native_dropout_backward)\n"
        "return [sum_1, mm_1, None]"
    )
    assert not split_dropout(joint)


@pytest.mark.parametrize("p", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "strided", "expanded"])
def test_split_dropout_equals_eager(p: float, dtype: torch.dtype, layout: str) -> None:
    class Drops(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = {"transposed": x.transpose(0, 1), "strided": x[:, :, ::2], "expanded": x[:, :1].expand(7, 5, 33)}.get(
                layout, x
            )
            return nn.functional.dropout(x * 1 if layout == "transposed" else x, p)

    x = torch.randn(7, 5, 33, dtype=dtype, requires_grad=True)
    joint, _, _ = joint_graph(Drops(), x)
    given = ([x.detach()], [torch.randn_like(Drops()(x)).contiguous()])
    state = torch.get_rng_state()
    output = Drops()(x)
    expected = [output.detach(), *torch.autograd.grad(output, x, given[1][0])]
    if p == 1.0:  # here eager draws nothing, the captured graph does
        expected = _leaves(joint(*given))
    after = torch.get_rng_state()
    assert split_dropout(joint)
    torch.set_rng_state(state)
    found = _leaves(joint(*given))
    assert torch.equal(torch.get_rng_state(), after)
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, other) and one.stride() == other.stride()


def test_split_dropout_leaves_a_graph_without_dropout() -> None:
    joint, _, _ = joint_graph(nn.Linear(3, 3), torch.randn(2, 3))
    before = text_of(joint.graph)
    assert not split_dropout(joint)
    assert text_of(joint.graph) == before


class Bias(nn.Module):
    """The gradients of `left` and `right` are one tensor, a view of the tangent."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.randn(3))
        self.right = nn.Parameter(torch.randn(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x + self.left + self.right).sum()


def test_own_gradients_copies_what_autograd_would_copy() -> None:
    joint, outputs, _ = joint_graph(Bias(), torch.randn(3))
    assert text_of(joint.graph).endswith("return [sum_1, expand, None, expand]")
    assert own_gradients(joint, outputs)
    assert text_of(joint.graph).endswith(
        "expand = expand.default(tangents_1, [3])\n"
        "expand_copy_1 = copy_laid_out_like.default(expand, primals_3)\n"
        "expand_copy = copy_laid_out_like.default(expand, primals_1)\n"
        "return [sum_1, expand_copy, None, expand_copy_1]"
    )
    assert not own_gradients(joint, outputs)


def test_own_gradients_leaves_what_autograd_keeps() -> None:
    joint, outputs, _ = joint_graph(nn.Sequential(nn.Linear(3, 3), nn.Conv1d(3, 3, 1)), torch.randn(3, 3))
    assert not own_gradients(joint, outputs)


def test_copies_take_the_parameter_layout() -> None:
    parameter = torch.randn(4, 6).t()
    copy = torch.ops.graphopt.copy_laid_out_like(torch.ones(6, 1).expand(6, 4), parameter)
    assert copy.stride() == parameter.stride()
    assert copy.is_set_to(copy) and torch.equal(copy, torch.ones(6, 4))


class Shapes(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * torch.ones_like(x * 3) + torch.full_like(x, 2.0)).sum()


def test_free_shapes_gives_sizes_for_tensors() -> None:
    joint, _, _ = joint_graph(Shapes(), torch.randn(2, 3, requires_grad=True))
    assert "ones_like.default(mul" in text_of(joint.graph)
    assert free_shapes(joint)
    text = text_of(joint.graph)
    assert "ones_like = ones.default([2, 3], dtype=torch.float32, device=cpu, pin_memory=False)" in text
    assert "full_like = full.default([2, 3], 2.0, dtype=torch.float32, device=cpu, pin_memory=False)" in text
    assert not free_shapes(joint)


def test_specialize_makes_symbols_numbers() -> None:
    class Sized(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x.view(x.shape[0] * 2, -1) * x.shape[0]).sum()

    torch._dynamo.reset()
    seen: list[tuple[str, str]] = []

    def backend(module: torch.fx.GraphModule, _inputs: object) -> torch.fx.GraphModule:
        # Dynamo's own graph has the symbols that a joint graph has, under another key
        for node in module.graph.nodes:
            node.meta["val"] = node.meta.get("example_value")
        before = text_of(module.graph)
        assert specialize(module)
        seen.append((before, text_of(module.graph)))
        assert not specialize(module)
        return module

    model = torch.compile(Sized(), backend=backend, dynamic=True)
    model(torch.randn(4, 6, requires_grad=True))
    before, after = seen[0]
    assert "view = view(l_x_, mul, -1)" in before
    assert after.endswith("view = view(l_x_, 8, -1)\nmul_1 = mul(view, 4)\nsum_1 = sum(mul_1)\nreturn (sum_1,)")
    # the numbers are guarded: another size is another graph
    x = torch.randn(5, 6, requires_grad=True)
    assert torch.equal(model(x), Sized()(x)) and len(seen) == 2


@pytest.mark.parametrize("model", [Dropout(), Bias(), Shapes()], ids=lambda m: type(m).__name__)
def test_a_step_with_every_pass_equals_eager(model: nn.Module) -> None:
    import graphopt

    x = torch.randn(3, 4) if isinstance(model, Dropout) else torch.randn(3, requires_grad=True)
    args = (x,)
    eager = run_step(model, model._call_impl, args, {})
    graphopt.optimize(model, "1GiB", example_inputs=args)
    assert differences(eager, run_step(model, model, args, {})) == []


class Writes(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        y[:, 0] = x[:, 1]
        y[:, 1:] = 3.0
        return (y * y).sum()


def test_skip_copies_scatters_the_source() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    joint, _, _ = joint_graph(Writes(), x)
    given = ([x.detach()], [torch.ones(())])
    expected = _leaves(joint(*given))
    assert "copy = copy.default(select" in text_of(joint.graph)
    assert skip_copies(joint)
    text = text_of(joint.graph)
    assert "select_scatter = select_scatter.default(mul, select" in text
    assert "copy.default(select" not in text
    assert all(torch.equal(a, b) for a, b in zip(expected, _leaves(joint(*given)), strict=True))
    assert not skip_copies(joint)

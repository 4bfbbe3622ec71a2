"""The shard pass: parameters are rows, gathered where they are read; gradients are scattered where they are made."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from graphopt.base.errors import UsageError
from graphopt.compression import row_ops
from graphopt.compression.methods import EightBit
from graphopt.graph.joint import JointGraph
from graphopt.graph.roles import PRICE, RUN_ONCE
from graphopt.kernels.sharding import ops
from graphopt.kernels.sharding.transport import ALONE_BYTES
from graphopt.passes.joint import CLEANING, shard_parameters
from graphopt.passes.joint.contract import RULES
from graphopt.passes.joint.sharding.how import CompressedRows, RowsOver
from graphopt.passes.joint.sharding.parcels import bytes_of
from graphopt.passes.run_passes import run_passes
from tests.support.joint import joint_graph, text_of

HOW = RowsOver("rows", 3, lambda whole_bytes: 1e-9 * whole_bytes)


class Two(nn.Module):
    """A layer whose weight travels alone, and one that is small."""

    def __init__(self, width: int = 160) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width, bias=False), nn.Linear(width, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x))).sum()


def sharded(model: nn.Module, x: Tensor, how: RowsOver = HOW) -> tuple[JointGraph, str]:
    """The joint graph with all parameters sharded, and its text."""
    joint, static = joint_graph(model, x)
    run_passes(joint, CLEANING)
    run_passes(joint, shard_parameters(static, how), RULES)
    return joint, text_of(joint.graph)


def test_what_is_scattered_compressed_is_priced_as_it_travels_and_never_runs_again() -> None:
    joint, static = joint_graph(Two(), torch.randn(4, 160))
    run_passes(joint, CLEANING)
    methods = dict.fromkeys(range(3), EightBit())
    run_passes(joint, shard_parameters(static, HOW, CompressedRows(methods, scaled=True)), RULES)
    (begin,), (end,) = of_kind(joint, row_ops.begin_exchange_), of_kind(joint, row_ops.end_exchange_)
    blocks = 2 * -(-54 * 160 // 512) + -(-52 * 160 // 512)  # of each rank's rows by themselves
    assert [each.nbytes for each in begin.meta["val"]] == [516 * blocks, 3 * 516 * -(-54 * 160 // 512)]
    assert begin.meta[PRICE] == (pytest.approx(1e-9 * 516 * blocks), 0)
    assert [tuple(each.shape) for each in end.meta["val"]] == [(54, 160)]
    assert begin.meta[RUN_ONCE] and end.meta[RUN_ONCE]
    (small,) = of_kind(joint, ops.begin_scatter_)  # fewer than 1,024 elements
    assert bytes_of(small.args[0][0]) == 5 * 160 * 4  # type: ignore[index, arg-type]
    assert len(of_kind(joint, row_ops.note_not_finite_)) == 1
    assert not run_passes(joint, shard_parameters(static, HOW, CompressedRows(methods, scaled=True)), RULES)


def of_kind(joint: JointGraph, target: Callable[..., object]) -> list[torch.fx.Node]:
    return [node for node in joint.graph.nodes if node.target is target]


def test_parameters_are_gathered_and_gradients_scattered() -> None:
    joint, after = sharded(Two(), torch.randn(4, 160))
    assert after.splitlines() == [
        "primals_1: input",
        "primals_2: input",
        "primals_3: input",
        "tangents_1: input",
        "gather_default = gather.default([primals_1], [160], rows)",
        "getitem = getitem(gather_default, 0)",
        "primals_1_gathered = gathered.default(getitem)",
        "t = t.default(primals_1_gathered)",
        "mm = mm.default(primals_2, t)",
        "tanh = tanh.default(mm)",
        "detach = detach.default(tanh)",
        "gather_default_1 = gather.default([primals_3], [5], rows)",
        "getitem_1 = getitem(gather_default_1, 0)",
        "primals_3_gathered = gathered.default(getitem_1)",
        "t_1 = t.default(primals_3_gathered)",
        "mm_1 = mm.default(tanh, t_1)",
        "sum_1 = sum.default(mm_1)",
        "expand = expand.default(tangents_1, [4, 5])",
        "t_2 = t.default(expand)",
        "mm_2 = mm.default(t_2, tanh)",
        "t_3 = t.default(mm_2)",
        "t_4 = t.default(t_1)",
        "mm_3 = mm.default(expand, t_4)",
        "t_5 = t.default(t_3)",
        "begin_scatter__default = begin_scatter_.default([t_5], rows)",
        "end_scatter_default = end_scatter.default([t_5], rows, , 3)",
        "getitem_2 = getitem(end_scatter_default, 0)",
        "detach_1 = detach.default(detach)",
        "tanh_backward = tanh_backward.default(mm_3, detach_1)",
        "t_6 = t.default(tanh_backward)",
        "mm_4 = mm.default(t_6, primals_2)",
        "t_7 = t.default(mm_4)",
        "t_8 = t.default(t_7)",
        "begin_scatter__default_1 = begin_scatter_.default([t_8], rows)",
        "end_scatter_default_1 = end_scatter.default([t_8], rows, , 3)",
        "getitem_3 = getitem(end_scatter_default_1, 0)",
        "return (sum_1, getitem_3, None, getitem_2)",
    ]
    rows = [tuple(node.meta["val"].shape) for node in joint.primals]
    assert rows[0] == (54, 160) and rows[2] == (2, 160)
    for position, gradient in joint.gradients.items():
        assert gradient.meta["val"].shape == joint.primals[position].meta["val"].shape
        assert gradient.args[0].target is ops.end_scatter  # type: ignore[union-attr]


def test_what_is_sent_never_runs_again_and_what_is_gathered_may() -> None:
    joint, _ = sharded(Two(), torch.randn(4, 160))
    for target in (ops.begin_scatter_, ops.end_scatter):
        assert all(node.meta[RUN_ONCE] for node in of_kind(joint, target))
    assert not any(node.meta.get(RUN_ONCE) for node in of_kind(joint, ops.gather))


def test_prices_are_those_of_the_link() -> None:
    joint, _ = sharded(Two(), torch.randn(4, 160))
    large = of_kind(joint, ops.gather)[0]
    assert large.meta[PRICE] == (pytest.approx(1e-9 * 160 * 160 * 4), 0)


def test_small_parameters_travel_together_and_large_ones_alone() -> None:
    layers = [nn.Linear(16, 16) for _ in range(4)]
    joint, _ = sharded(nn.Sequential(*layers, nn.Linear(16, 2000, bias=False)), torch.randn(4, 16))
    gathers = [node.args[0] for node in of_kind(joint, ops.gather)]
    assert sorted(len(parcel) for parcel in gathers) == [1, 8]  # type: ignore[arg-type]
    alone = next(parcel for parcel in gathers if len(parcel) == 1)  # type: ignore[arg-type]
    assert ALONE_BYTES <= 2000 * 16 * 4
    assert bytes_of(alone[0]) == 667 * 16 * 4  # type: ignore[index]


class Halved(nn.Module):
    """Reads its weight in bfloat16 alone, and its bias in both."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        half = (x.bfloat16() @ self.weight.bfloat16()) + self.bias.bfloat16()
        return half.float().sum() + self.bias.sum()


def test_a_parameter_that_is_only_read_in_half_is_gathered_in_half() -> None:
    joint, _ = sharded(Halved(), torch.randn(4, 8))
    dtypes = {node.meta["val"][0].dtype: len(node.args[0]) for node in of_kind(joint, ops.gather)}  # type: ignore
    assert dtypes == {torch.bfloat16: 1, torch.float32: 1}


def test_a_gradient_in_shared_memory_is_copied_before_it_is_sent() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(6))

        def forward(self, x: Tensor) -> Tensor:
            return ((self.a + self.b) * x).sum()  # one gradient for both

    joint, _ = sharded(Twice(), torch.randn(6))
    (begin,) = of_kind(joint, ops.begin_scatter_)
    first, second = begin.args[0]  # type: ignore[misc]
    assert first is not second
    assert torch.ops.aten.clone.default in (first.target, second.target)  # type: ignore[union-attr]


def test_a_parameter_that_the_forward_writes_is_refused() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4), requires_grad=False)
            self.other = nn.Parameter(torch.randn(4))

        def forward(self, x: Tensor) -> Tensor:
            self.weight.mul_(0.9)
            return (x * self.weight * self.other).sum()

    with pytest.raises(UsageError, match="the forward writes the parameter"):
        sharded(Writes(), torch.randn(4))


def test_sharding_twice_changes_nothing() -> None:
    joint, after = sharded(Two(), torch.randn(4, 160))
    assert not run_passes(joint, shard_parameters([0], HOW), RULES)
    assert text_of(joint.graph) == after

"""Values that are moved out and fetched, written out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from graphopt.capture.read_joint import build_step_graph
from graphopt.emit.emit import emit, emit_whole
from graphopt.graph.step_graph import StepGraph
from graphopt.graph.transfers import placed, step_with_transfers
from tests.support.joint import joint_graph, text_of


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.weight).tanh().square().sum()


@pytest.fixture(scope="module")
def step() -> StepGraph:
    joint, static = joint_graph(Small(), torch.randn(3, 4))
    return build_step_graph(joint, static)


def moved_step(step: StepGraph) -> tuple[StepGraph, int]:
    tanh = next(i for i, op in enumerate(step.ops) if op.name == "tanh")
    return step_with_transfers(step, [tanh]), placed(len(step.ops), [tanh]).fetch(tanh)


def test_ops_stand_behind_the_one_whose_result_is_moved(step: StepGraph) -> None:
    names = [op.name for op in moved_step(step)[0].ops]
    at = names.index("tanh")
    assert names[at : at + 3] == ["tanh", "tanh_fetched", "tanh_written"]
    assert [name for name in names if name not in ("tanh_fetched", "tanh_written")] == [op.name for op in step.ops]


def test_nothing_is_written_of_what_is_not_fetched(step: StepGraph) -> None:
    moved, _ = moved_step(step)
    emitted = emit(moved, tuple(range(len(moved.ops))), "disk")
    plain = emit(step, tuple(range(len(step.ops))))
    assert text_of(emitted.forward.graph) == text_of(plain.forward.graph)
    assert text_of(emitted.backward.graph) == text_of(plain.backward.graph)


def test_golden(step: StepGraph) -> None:
    moved, fetch = moved_step(step)
    order = list(range(len(moved.ops)))
    order.insert(moved.boundary + 1, fetch)
    emitted = emit(moved, tuple(order), "disk")
    assert text_of(emitted.forward.graph) == FORWARD
    assert text_of(emitted.backward.graph) == BACKWARD
    whole = text_of(emit_whole(moved, tuple(order), "disk").graph)
    for line in ("= stow.default(", "= settle.default(", "= fetch.default(", "= arrived.default("):
        assert line in whole


FORWARD = """\
primals_1: input
primals_2: input
mm = mm.default(primals_2, primals_1)
tanh = tanh.default(mm)
tanh_token = stow.default(tanh, disk)
tanh_written = settle.default(tanh, tanh_token, disk)
pow_1 = pow.Tensor_Scalar(tanh, 2)
sum_1 = sum.default(pow_1)
return (sum_1, tanh_token, primals_2)"""
BACKWARD = """\
tanh_token: input
primals_2: input
tangents_1: input
tanh_fetched = fetch.default(tanh_token, disk, [3, 4], [4, 1], torch.float32, cpu)
tanh_arrived = arrived.default(tanh_fetched, tanh_token)
pow_2 = pow.Tensor_Scalar(tanh_arrived, 1.0)
mul = mul.Scalar(pow_2, 2.0)
expand = expand.default(tangents_1, [3, 4])
mul_1 = mul.Tensor(expand, mul)
detach = detach.default(tanh_arrived)
detach_1 = detach.default(detach)
tanh_backward = tanh_backward.default(mul_1, detach_1)
t = t.default(primals_2)
mm_1 = mm.default(t, tanh_backward)
return (mm_1, None)"""

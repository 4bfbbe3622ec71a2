"""Schedules written out: golden text, order, what is saved, what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from graphopt.base.errors import PlanMismatchError
from graphopt.capture.read_joint import build_step_graph
from graphopt.emit.emit import RECOMPUTED, emit
from graphopt.emit.generator_state import generator_state_bytes
from graphopt.graph.step_graph import StepGraph
from graphopt.passes.joint.split_dropout import split_dropout
from tests.support.joint import joint_graph, text_of


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(x @ self.weight, 0.5).relu().sum()


@pytest.fixture(scope="module")
def step() -> StepGraph:
    joint, static = joint_graph(Small(), torch.randn(3, 4))
    split_dropout(joint)
    return build_step_graph(joint, static)


def ids(step: StepGraph, *names: str) -> tuple[int, ...]:
    known = {op.name: i for i, op in enumerate(step.ops)}
    return tuple(known[name] for name in names)


def test_nothing_recomputed(step: StepGraph) -> None:
    emitted = emit(step, tuple(range(len(step.ops))))
    assert text_of(emitted.forward.graph) == (
        "primals_1: input\n"
        "primals_2: input\n"
        "mm = mm.default(primals_2, primals_1)\n"
        "dropout_mask = dropout_mask.default([3, 4], [4, 1], 0.5, device=cpu)\n"
        "dropout = apply_dropout_mask.default(mm, dropout_mask, 0.5)\n"
        "relu = relu.default(dropout)\n"
        "sum_1 = sum.default(relu)\n"
        "return (sum_1, relu, dropout_mask, primals_2)"
    )
    assert text_of(emitted.backward.graph) == (
        "relu: input\n"
        "dropout_mask: input\n"
        "primals_2: input\n"
        "tangents_1: input\n"
        "expand = expand.default(tangents_1, [3, 4])\n"
        "detach = detach.default(relu)\n"
        "detach_1 = detach.default(detach)\n"
        "threshold_backward = threshold_backward.default(expand, detach_1, 0)\n"
        "native_dropout_backward = native_dropout_backward.default(threshold_backward, dropout_mask, 2.0)\n"
        "t = t.default(primals_2)\n"
        "mm_1 = mm.default(t, native_dropout_backward)\n"
        "return (mm_1, None)"
    )


def test_a_recomputed_mask_replays_its_generator_state(step: StepGraph) -> None:
    forward = tuple(range(step.boundary + 1))
    again = ids(step, "mm", "dropout_mask", "dropout", "relu")
    rest = tuple(range(step.boundary + 1, len(step.ops)))
    emitted = emit(step, forward + again + rest)
    assert text_of(emitted.forward.graph).endswith(
        "dropout_mask_and_state = "
        "run_and_save_rng_state(graphopt.dropout_mask.default, [3, 4], [4, 1], 0.5, device=cpu)\n"
        "dropout_mask_state = getitem(dropout_mask_and_state, 0)\n"
        "dropout_mask = getitem(dropout_mask_and_state, 1)\n"
        "dropout = apply_dropout_mask.default(mm, dropout_mask, 0.5)\n"
        "relu = relu.default(dropout)\n"
        "sum_1 = sum.default(relu)\n"
        "return (sum_1, primals_2, primals_1, dropout_mask_state)"
    )
    assert text_of(emitted.backward.graph).startswith(
        "primals_2: input\n"
        "primals_1: input\n"
        "dropout_mask_state: input\n"
        "tangents_1: input\n"
        "mm_recomputed = mm.default(primals_2, primals_1)\n"
        "dropout_mask_recomputed = "
        "run_with_rng_state(dropout_mask_state, graphopt.dropout_mask.default, [3, 4], [4, 1], 0.5, device=cpu)\n"
        "dropout_recomputed = apply_dropout_mask.default(mm_recomputed, dropout_mask_recomputed, 0.5)\n"
        "relu_recomputed = relu.default(dropout_recomputed)\n"
    )
    tagged = [node.name for node in emitted.backward.graph.nodes if RECOMPUTED in node.meta]
    assert tagged == ["mm_recomputed", "dropout_mask_recomputed", "dropout_recomputed", "relu_recomputed"]
    assert generator_state_bytes(step, forward + again + rest) == torch.get_rng_state().numel()


def test_emitting_twice_gives_the_same_text(step: StepGraph) -> None:
    schedule = tuple(range(len(step.ops)))
    one, two = emit(step, schedule), emit(step, schedule)
    assert one.forward.code == two.forward.code and one.backward.code == two.backward.code


def test_emitted_code_frees_a_value_at_its_last_use(step: StepGraph) -> None:
    code = emit(step, tuple(range(len(step.ops)))).forward.code
    line = next(line for line in code.splitlines() if "apply_dropout_mask" in line)
    assert line.rstrip().endswith("mm = None")
    assert "args_list.clear()" in code


def test_emitted_graphs_are_readable(step: StepGraph) -> None:
    readable = emit(step, tuple(range(len(step.ops)))).forward.print_readable(print_output=False)
    assert "test_emit.py" in readable and 'f32[3, 4]"' in readable


def test_random_ops_out_of_order_are_refused() -> None:
    class Twice(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (torch.rand_like(x) * x + torch.randn_like(x)).sum()

    joint, _ = joint_graph(Twice(), torch.randn(3, requires_grad=True))
    step = build_step_graph(joint)
    schedule = list(range(len(step.ops)))
    first, second = ids(step, "rand_like", "randn_like")
    schedule.remove(second)
    schedule.insert(first, second)
    with pytest.raises(PlanMismatchError, match="'randn_like' before 'rand_like'"):
        emit(step, tuple(schedule))


def test_backward_ops_in_the_forward_are_refused() -> None:
    class Free(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.pow(3).sum()

    joint, _ = joint_graph(Free(), torch.randn(3, requires_grad=True))
    step = build_step_graph(joint)
    late = next(i for i, op in enumerate(step.ops) if op.backward and op.node is not None and op.inputs == (0,))
    schedule = [late, *(i for i in range(len(step.ops)) if i != late)]
    with pytest.raises(PlanMismatchError, match="in the forward"):
        emit(step, tuple(schedule))


def test_names_that_meet_stay_apart() -> None:
    """A recomputed node, an input and an op of one name in one graph: the code must tell them apart."""

    class Getters(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(3):
                x = nn.functional.layer_norm(x, (4,)).sin()
            return x.sum()

    joint, _ = joint_graph(Getters(), torch.randn(5, 4, requires_grad=True))
    step = build_step_graph(joint)
    forward = tuple(range(step.boundary + 1))
    again = tuple(i for i in forward[:-1] if step.ops[i].recomputable)
    emitted = emit(step, forward + again + again + tuple(range(step.boundary + 1, len(step.ops))))
    inputs = emitted.backward.graph.find_nodes(op="placeholder")
    assert [node.target for node in inputs] == [node.name for node in inputs]
    assert len({node.name for node in emitted.backward.graph.nodes}) == len(emitted.backward.graph.nodes)

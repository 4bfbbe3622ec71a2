"""Joint graphs read as ops and values: storages, roles, what may run twice."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.autograd.function import BackwardCFunction

import graphopt
from graphopt.base.errors import CaptureError
from graphopt.capture.read_joint import build_step_graph
from graphopt.graph.fingerprint import hash_graph
from graphopt.graph.nodes import is_random
from graphopt.graph.step_graph import StepGraph, to_problem
from graphopt.problem.problem import check_problem
from tests.support.joint import joint_graph


def step_graph(model: nn.Module, *args: object) -> StepGraph:
    joint, outputs, static = joint_graph(model, *args)
    return build_step_graph(joint, outputs, static)


def op_named(step: StepGraph, name: str) -> int:
    return next(i for i, op in enumerate(step.ops) if op.name == name)


class Views(nn.Module):
    """q, k and v are one storage; so are all their transposes."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(8, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.mix(x).split(8, dim=-1)
        return ((q @ k.transpose(0, 1)).softmax(-1) @ v).sum()


def test_views_are_no_ops_and_share_their_value() -> None:
    step = step_graph(Views(), torch.randn(4, 8))
    forward = [op.name for op in step.ops[: step.boundary]]
    assert forward == ["addmm", "mm", "_softmax", "mm_1", "sum_1"]
    mixed = step.ops[0].outputs[0]
    assert step.values[mixed].bytes == 4 * 24 * 4
    assert mixed in step.ops[1].inputs and mixed in step.ops[3].inputs


def test_the_boundary_reads_outputs_and_makes_tangents() -> None:
    step = step_graph(nn.Linear(3, 2), torch.randn(5, 3))
    boundary = step.ops[step.boundary]
    assert boundary.name == "loss_boundary" and not boundary.recomputable
    assert [step.values[v].kind for v in boundary.inputs] == ["outputs"]
    assert [step.values[v].kind for v in boundary.outputs] == ["tangents"]
    # the user holds the output to the end; the tangent dies with its last read
    assert set(boundary.inputs) <= set(step.outputs)
    # that a backward hands them over is new in torch 2.13
    assert bool(set(boundary.outputs) & set(step.outputs)) is not hasattr(BackwardCFunction, "apply_boxed")


def test_the_tangent_that_a_backward_starts_from_is_held() -> None:
    step = step_graph(Views(), torch.randn(4, 8))
    assert set(step.ops[step.boundary].outputs) <= set(step.outputs)


def test_parameters_and_inputs_cost_nothing_and_gradients_are_kept() -> None:
    step = step_graph(nn.Linear(3, 2), torch.randn(5, 3))
    assert [v.bytes for v in step.values if v.kind == "resident"] == [0, 0, 0]
    gradients = {i: v.bytes for i, v in enumerate(step.values) if v.kind == "gradients"}
    assert sorted(gradients.values()) == [2 * 4, 2 * 3 * 4]
    assert set(gradients) <= set(step.outputs)


class Statistics(nn.Module):
    """A buffer that the forward reads, writes, and whose old value shapes the output."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        centred = (x - self.mean) * self.weight
        with torch.no_grad():
            self.mean.lerp_(x.mean(0), 0.1)
        return centred.pow(2).sum()


def test_reads_of_a_buffer_that_changes_run_once() -> None:
    step = step_graph(Statistics(), torch.randn(6, 4))
    assert not step.ops[op_named(step, "sub")].recomputable
    assert step.ops[op_named(step, "mul")].recomputable
    write = op_named(step, "copy_")
    assert not step.ops[write].recomputable and not step.ops[write].backward
    # the write stands in the forward, behind the last read of what it overwrites
    assert op_named(step, "sub") < write < step.boundary


def test_batch_norm_may_run_again_since_it_only_returns_its_statistics() -> None:
    step = step_graph(nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3)), torch.randn(4, 2, 5))
    norm = next(op for op in step.ops if "batch_norm" in op.name and not op.backward)
    assert norm.recomputable
    writes = [op.name for op in step.ops[: step.boundary] if op.name.startswith("copy_")]
    assert len(writes) == 3  # mean, variance, batches tracked


def test_a_batch_norm_that_writes_unseen_runs_once() -> None:
    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(3))
            self.register_buffer("var", torch.ones(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sin().sum() + self.mean.sum() + self.var.sum()

    joint, outputs, _ = joint_graph(Norm(), torch.randn(4, 3, 5, requires_grad=True))
    sin = next(node for node in joint.graph.nodes if node.name == "sin")
    x, mean, var = joint.graph.find_nodes(op="placeholder")[:3]
    sin.target = torch.ops.aten.native_batch_norm.default
    sin.args = (x, None, None, mean, var, True, 0.1, 1e-5)
    step = build_step_graph(joint, outputs)
    assert not step.ops[op_named(step, "sin")].recomputable


def test_random_ops_are_known() -> None:
    class Noisy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (nn.functional.dropout(x, 0.5) + torch.randn_like(x)).sum()

    step = step_graph(Noisy(), torch.randn(3, requires_grad=True))
    assert [op.name for op in step.ops if op.random] == ["native_dropout", "randn_like"]
    assert all(op.recomputable for op in step.ops if op.random)


def test_attention_without_dropout_is_not_random() -> None:
    class Attention(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.scaled_dot_product_attention(x, x, x).sum()

    joint, _, _ = joint_graph(Attention(), torch.randn(1, 2, 4, 8, requires_grad=True))
    assert not any(is_random(node) for node in joint.graph.nodes if node.op == "call_function")


def test_a_users_own_backward_is_in_the_backward() -> None:
    class Triple(torch.autograd.Function):
        @staticmethod
        def forward(_ctx: object, x: torch.Tensor) -> torch.Tensor:
            return x * 2

        @staticmethod
        def backward(_ctx: object, gradient: torch.Tensor) -> torch.Tensor:
            return gradient * 3 * gradient.cos()

    class Own(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return Triple.apply(x.sin()).sum()

    step = step_graph(Own(), torch.randn(3, requires_grad=True))
    by_half = {op.name: op.backward for op in step.ops}
    assert not by_half["sin"] and not by_half["sum_1"]
    assert all(by_half[name] for name in by_half if name.startswith("cos"))


def test_tensors_on_two_accelerators_are_refused() -> None:
    joint, outputs, _ = joint_graph(nn.Linear(3, 2), torch.randn(5, 3))
    first, second = joint.graph.find_nodes(op="placeholder")[:2]
    for node, device in ((first, "cuda:0"), (second, "cuda:1")):
        with torch._subclasses.FakeTensorMode():
            node.meta["val"] = torch.empty(2, 3, device=device)
    with pytest.raises(CaptureError, match="cuda:0 and cuda:1"):
        build_step_graph(joint, outputs)


@pytest.mark.parametrize("model", [Views(), Statistics(), nn.LSTMCell(4, 4)], ids=lambda m: type(m).__name__)
def test_what_comes_out_is_a_problem(model: nn.Module) -> None:
    step = step_graph(model, torch.randn(6, 8 if isinstance(model, Views) else 4))
    count = len(step.compute_nodes)
    problem = to_problem(step, [1.0] * count, [7] * count)
    assert check_problem(problem) is problem
    assert len(problem.ops) == count + 1 and problem.ops[step.boundary].seconds == 0.0


def test_source_lines_and_modules_are_kept() -> None:
    step = step_graph(Views(), torch.randn(4, 8))
    softmax = step.ops[op_named(step, "_softmax")]
    assert "test_read_joint.py" in softmax.source and softmax.source.endswith("in forward")
    assert step.ops[0].module_path == "mix"


def test_the_hash_is_the_same_in_every_process_and_sees_shapes() -> None:
    def hash_of(rows: int) -> str:
        torch.manual_seed(0)
        return hash_graph(joint_graph(nn.Linear(3, 2), torch.randn(rows, 3))[0])

    here = hash_of(5)
    program = (
        "import sys; sys.path.insert(0, '.'); import torch; from torch import nn;"
        "from tests.support.joint import joint_graph;"
        "from graphopt.graph.fingerprint import hash_graph;"
        "print(hash_graph(joint_graph(nn.Linear(3, 2), torch.randn(5, 3))[0]))"
    )
    there = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == here
    assert hash_of(6) != here


def test_module_paths_are_the_users_in_a_training_step() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 4)))
    step = graphopt.train_step(model, nn.functional.mse_loss, torch.optim.SGD(model.parameters(), lr=0.1))
    step.plan_for((torch.randn(2, 4), torch.randn(2, 4)), {})
    (planned,) = step._memory.planned
    paths = {op.name: op.module_path for op in planned.planned.captured.step.ops}
    assert (paths["addmm"], paths["relu"], paths["addmm_1"], paths["mse_loss"]) == ("0", "1.0", "1.1", "")

"""The ops as ops: in fx graphs, under fake tensors, and chosen."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from graphopt import kernels
from graphopt.base.errors import UsageError

ADAM = {
    "lr": 0.1,
    "beta1": 0.9,
    "beta2": 0.99,
    "weight_decay": 0.0,
    "eps": 1e-8,
    "amsgrad": False,
    "maximize": False,
    "decoupled": True,
}


def test_they_stand_in_a_graph_as_they_are_called() -> None:
    graph = torch.fx.Graph()
    gradient = graph.placeholder("gradient")
    graph.output(graph.call_function(kernels.gradient_norm, ([gradient], 2.0)))
    module = torch.fx.GraphModule(torch.nn.Module(), graph)
    assert "torch.ops.graphopt.gradient_norm.default" in module.code
    assert [float(t) for t in module(torch.tensor([3.0, 4.0]))] == [5, 0]


def test_fake_tensors_run_no_kernel_and_have_the_results_shapes() -> None:
    with FakeTensorMode():
        tensor, scalar = torch.empty(3, 4), torch.empty(())
        norm, found_inf = kernels.gradient_norm([tensor], 2.0)
        assert norm.shape == found_inf.shape == ()
        kernels.adam_([tensor], [tensor], [tensor], [tensor], [], [scalar], [], scalar, None, found_inf, **ADAM)
        kernels.accumulate_(tensor, tensor, 0.0)


@pytest.mark.parametrize("kernel", ["gradient_norm", "accumulate_", "accumulate_mm_"])
def test_the_schemas_say_what_is_written(kernel: str) -> None:
    square = torch.ones(4, 4)
    arguments = {
        "gradient_norm": ([square], 2.0),
        "accumulate_": (torch.zeros(4, 4), square, 1.0),
        "accumulate_mm_": (torch.zeros(4, 4), square, square, 1.0),
    }[kernel]
    torch.library.opcheck(getattr(kernels, kernel), arguments, test_utils=("test_schema", "test_faketensor"))


def test_an_unknown_choice_names_the_choices() -> None:
    with pytest.raises(UsageError, match="auto, stock, own, not 'fast'"), kernels.use("fast"):  # type: ignore[arg-type]
        pass


def test_kernels_can_be_chosen_before_anything_else_is_imported() -> None:
    subprocess.run([sys.executable, "-c", "import graphopt; graphopt.kernels.use('stock')"], check=True)

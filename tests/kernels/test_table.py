"""Which function runs an op: what the tables of the families claim is what their files hold, and what is called."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from graphopt import kernels
from graphopt.kernels import define
from graphopt.kernels.define import Implementations, implementation_for

FOLDER = Path(define.__file__).parent
#: The ops that send, or move, what others made have one implementation each, and no table.
FAMILIES = sorted({path.parent.name for path in FOLDER.glob("*/ops.py")} - {"sharding", "offload", "streaming"})
TABLES: dict[str, dict[str, Implementations]] = {
    family: import_module(f"graphopt.kernels.{family}.ops").TABLE for family in FAMILIES
}
#: They call the ops of the tail, block by block.
STREAMED = ("stream_adam_", "stream_sgd_")
ROWS = {name: op for table in TABLES.values() for name, op in table.items()}
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def arguments_of(function: Callable[..., Any]) -> list[str]:
    """The names of those that may be passed by their place."""
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]


def triton_functions(family: str) -> dict[str, list[str]]:
    """The public functions of a family's cuda.py and the names of their arguments: read, as Triton may not be here."""
    path = FOLDER / family / "cuda.py"
    body = ast.parse(path.read_text(encoding="utf-8")).body if path.exists() else []
    every = [node for node in body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    return {node.name: [argument.arg for argument in node.args.args] for node in every}


def test_every_op_stands_in_one_table() -> None:
    assert FAMILIES == ["messages", "quantize", "sparsify", "tail"]
    assert sorted([*(name for table in TABLES.values() for name in table), *STREAMED, "use"]) == sorted(kernels.__all__)
    for name in ROWS:
        assert getattr(kernels, name) is getattr(torch.ops.graphopt, name).default


@pytest.mark.parametrize("name", ROWS)
def test_a_definition_has_the_ops_name_and_arguments(name: str) -> None:
    definition = ROWS[name].definition
    assert definition.__name__ == name
    assert definition.__module__.rpartition(".")[2].startswith("definition")
    taken = [a.name for a in getattr(kernels, name)._schema.arguments if not a.kwarg_only]
    assert arguments_of(definition) == taken


@pytest.mark.parametrize("family", FAMILIES)
def test_compiled_functions_are_those_that_the_table_names(family: str) -> None:
    module = import_module(f"graphopt.kernels.{family}.cpu")
    found = {
        name: function
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__ and not name.startswith("_")
    }
    assert found == {name: op.cpu for name, op in TABLES[family].items() if op.cpu is not None}
    for name, function in found.items():
        assert arguments_of(function) == arguments_of(ROWS[name].definition)


@pytest.mark.parametrize("family", FAMILIES)
def test_triton_functions_are_those_that_the_table_names(family: str) -> None:
    claimed = {name: op.cuda for name, op in TABLES[family].items() if op.cuda is not None}
    assert claimed == {name: f"graphopt.kernels.{family}.cuda:{name}" for name in claimed}
    assert triton_functions(family) == {name: arguments_of(ROWS[name].definition) for name in claimed}


@pytest.mark.parametrize("name", ROWS)
def test_what_was_chosen_runs_and_the_definition_where_there_is_no_other(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    op = ROWS[name]
    monkeypatch.setattr(define, "_loaded", lambda place: place)
    with kernels.use("own"):
        assert implementation_for(CPU, op) is (op.cpu or op.definition)
        assert implementation_for(CUDA, op) is (op.cuda or op.definition)
        assert implementation_for(torch.device("meta"), op) is op.definition
    with kernels.use("stock"):
        assert implementation_for(CPU, op) is implementation_for(CUDA, op) is op.definition


def test_a_function_of_cuda_is_loaded_by_its_name_and_one_that_is_not_there_raises() -> None:
    join = Implementations(torch.add, cuda="posixpath:join")
    with kernels.use("own"):
        assert implementation_for(CUDA, join) is import_module("posixpath").join
        with pytest.raises(AttributeError, match="no_such_function"):
            implementation_for(CUDA, Implementations(torch.add, cuda="posixpath:no_such_function"))
        with pytest.raises(ModuleNotFoundError):
            implementation_for(CUDA, Implementations(torch.add, cuda="no_such_module:join"))


def samples() -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
    """Of each op arguments that it takes."""
    x, flag = [torch.ones(600)], torch.zeros(())
    state, steps = [torch.zeros(600)], [torch.zeros(())]
    wire, sparse = torch.zeros(2 * 516, dtype=torch.uint8), torch.zeros(4 + 4 + 4, dtype=torch.uint8)
    adam = {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "amsgrad": False, "decoupled": True}
    sgd = {"momentum": 0.0, "dampening": 0.0, "nesterov": False, "first": True}
    both = {"lr": 0.1, "weight_decay": 0.0, "maximize": False}
    scaling = {"growth": 2.0, "backoff": 0.5, "interval": 2, "hysteresis": 1, "lowest": 0.0, "highest": 8.0}
    counters = torch.zeros((), dtype=torch.int32), torch.zeros((), dtype=torch.int32)
    square = torch.ones(2, 2)
    return {
        "pack": ((x, torch.float16), {}),
        "unpack_": ((torch.ones(600), x), {}),
        "sum_parts": ((torch.ones(6, dtype=torch.float16), 2), {}),
        "commit_": ((state, x, flag), {}),
        "quantize_": ((x, [], flag, None, 1), {}),
        "requantize_": ((wire, x, 0, 1), {}),
        "dequantize_": ((wire, x, 1, None), {}),
        "qsgd": ((x, flag, None, 8, 1, 0, 0, 0), {}),
        "dequantize_qsgd_": ((wire, x, 1, 8, None), {}),
        "sparsify_": ((x, [], flag, None, [1], None), {}),
        "sparsify_momentum_": ((x, state, state, flag, None, [1], 0.9), {}),
        "desparsify_": ((sparse, x, 1, [1], None), {}),
        "gradient_norm": ((x, 2.0), {}),
        "adam_": ((state, x, state, state, [], steps, []), adam | both),
        "sgd_": ((state, x, [], []), sgd | both),
        "scale_update_": ((torch.ones(()), *counters, flag), scaling),
        "accumulate_": ((square, square, 1.0), {}),
        "accumulate_mm_": ((square, square.clone(), square.clone(), 1.0), {}),
    }


@pytest.mark.parametrize("name", ROWS)
def test_an_op_is_run_by_its_own_row_of_the_table(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def noted(device: torch.device, op: Implementations) -> Callable[..., Any]:
        asked.append((device, op))
        return op.definition

    monkeypatch.setattr(define, "implementation_for", noted)
    arguments, options = samples()[name]
    getattr(kernels, name)(*arguments, **options)
    assert asked == [(CPU, ROWS[name])]


def test_what_needs_triton_is_not_imported_with_the_ops() -> None:
    code = """
import sys
import graphopt.kernels
ours = [name.partition("graphopt.kernels.")[2] for name in sys.modules]
sys.exit(any("cuda" in name or "triton" in name for name in ours))
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

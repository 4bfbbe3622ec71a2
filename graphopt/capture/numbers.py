"""Python numbers that a model reads: what changed once is an input of the graph.

Dynamo takes an int or a float for a constant until it sees another value, and for a symbol from then on
(`automatic_dynamic_shapes`); of sizes of tensors see `changing_sizes`. torch
would go on to replace floats by 0-d tensors (`tensorify_python_scalars`), which takes those that it knows
no tensor variant for as constants again, and computes from sympy's expressions, which may round otherwise than Python.
Here a symbol stays a Python number, which reaches the very ops that eager calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from torch import fx
from torch._functorch._aot_autograd import graph_compile
from torch._guards import TracingContext
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from graphopt.graph.numbers import SYMBOLS, plain, replace_input

#: Dynamo's settings under which numbers that changed, in attributes of modules too, are inputs.
NUMBERS_ARE_INPUTS = {
    "automatic_dynamic_shapes": True,
    "automatic_dynamic_shapes_mark_as": "dynamic",
    "assume_static_by_default": True,
    "specialize_int": False,
    "specialize_float": False,
    "allow_unspec_int_on_nn_module": True,
}


@contextmanager
def floats_stay_floats() -> Iterator[None]:
    """Let AOTAutograd leave numbers in the graph as they are."""
    with mock.patch.object(graph_compile, "_apply_tensorify_python_scalars", lambda _module: None):
        yield


def reads_numbers(module: fx.GraphModule) -> bool:
    """Whether Python numbers that may differ from call to call are in one of Dynamo's graphs."""
    return any(isinstance(node.meta.get("example_value"), SYMBOLS) and node.users for node in module.graph.nodes)


def fix_numbers(module: fx.GraphModule) -> None:
    """Make every number in one of Dynamo's graphs a constant, guarded; to be called as `fix_sizes`."""
    for node in reversed(module.graph.nodes):
        number = node.meta.get("example_value")
        if isinstance(number, SYMBOLS):
            for user in list(node.users):
                replace_input(user, node, plain(number))
            if node.op != "placeholder":
                # not `eliminate_dead_code`, which takes all methods for pure: `x[0].mul_(2)` is one that nobody reads
                module.graph.erase_node(node)
    module.recompile()


def examples_of(module: fx.GraphModule) -> list[Any]:
    """Inside of a backend: the inputs of its graph, without memory.

    A float comes as a 0-d tensor that knows which symbol its item is, but to the mode of Dynamo's own tracing alone:
    the one that AOTAutograd traces in must be told.
    """
    mode = TracingContext.get().fake_mode
    assert mode is not None
    return [_known_to(mode, node.meta["example_value"]) for node in module.graph.find_nodes(op="placeholder")]


def _known_to(mode: FakeTensorMode, example: Any) -> Any:
    number = example.item_memo if isinstance(example, FakeTensor) else None
    if number is None:
        return example
    known = mode.from_tensor(example)
    known.item_memo = number
    return known

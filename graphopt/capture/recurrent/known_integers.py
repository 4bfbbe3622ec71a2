"""Integers that the inputs of a call hold, as numbers of a capture: read while Dynamo traces, and guarded.

Where a size is data, a graph can only be for one size. Dynamo has the inputs at hand, and whatever a few ops that have
no effects make of one of them can be made of it again, in a guard, for each call to come.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, fx
from torch._dynamo.guards import get_verbose_code_parts, install_guard
from torch._guards import Source
from torch.utils._python_dispatch import _disable_current_modes

from graphopt.kernels.recurrent.packing import batch_sizes, host_integers

Found = TypeVar("Found")

#: Methods of tensors, and functions of torch and operator, that may stand between an input and the integers.
_METHODS = frozenset(
    {
        *("add", "all", "and_", "any", "argsort", "bool", "clamp", "clamp_max", "clamp_min", "clone", "contiguous"),
        *("count_nonzero", "cpu", "detach", "eq", "flatten", "flip", "floordiv", "ge", "getitem", "gt", "index_select"),
        *("int", "invert", "le", "logical_and", "logical_not", "logical_or", "long", "lt", "max", "maximum", "min"),
        *("minimum", "mul", "ne", "or_", "reshape", "sort", "squeeze", "sub", "sum", "to", "unsqueeze", "view"),
    }
)
_FUNCTIONS = {
    *(getattr(module, name) for module in (torch, operator) for name in _METHODS if hasattr(module, name)),
    *(torch.as_tensor, torch.tensor, batch_sizes, host_integers),
}


@dataclass(frozen=True, eq=False)
class _Integers:
    """How a node's integers are made of an input; of none where they are constants."""

    run: Callable[..., Tensor]
    input: fx.Node | None

    def __call__(self, *inputs: Tensor) -> Tensor:
        with _disable_current_modes(), torch.no_grad():
            return self.run(*inputs)


def known_integers(node: fx.Node, summary: Callable[[Tensor], Found], words: Callable[[Found], str]) -> Found | None:
    """What `summary` makes of the integers that a node of Dynamo's gives, for all calls that its graph is right for.

    None where that cannot be known. `words` says for people what a call must hold. To be called while Dynamo traces.
    """
    integers = _integers_of(node)
    if integers is None:
        return None
    if integers.input is None:
        return summary(integers())
    argument = integers.input.meta["grapharg"]
    found = summary(integers(argument.example))
    fake = integers.input.meta["example_value"]

    shape, dtype = tuple(int(size) for size in fake.shape), fake.dtype

    def holds(value: Tensor) -> bool:
        return (tuple(value.shape), value.dtype) == (shape, dtype) and summary(integers(value)) == found

    _guard(argument.source, holds, words(found))
    return found


def _guard(source: Source, holds: Callable[[Tensor], bool], words: str) -> None:
    install_guard(source.make_guard(partial(_add_guard, holds, words)))


def _add_guard(holds: Callable[[Tensor], bool], words: str, builder: Any, guard: Any) -> None:
    builder.get_guard_manager(guard).add_lambda_guard(holds, get_verbose_code_parts(words, guard), guard.user_stack)


def _integers_of(node: fx.Node) -> _Integers | None:
    needed: dict[fx.Node, None] = {}
    if not _collect(node, needed):
        return None
    inputs = [each for each in needed if each.op == "placeholder"]
    if len(inputs) > 1:
        return None
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for each in needed:
        copies[each] = graph.node_copy(each, copies.__getitem__)
        copies[each].meta.clear()
    graph.output(copies[node])
    return _Integers(fx.GraphModule(torch.nn.Module(), graph), inputs[0] if inputs else None)


def _collect(node: fx.Node, needed: dict[fx.Node, None]) -> bool:
    """Add what a node is made of, in order; False where it is not known what that holds."""
    if node in needed:
        return True
    if not (_is_known_input(node) or _is_pure(node)) or not all(
        _collect(each, needed) for each in node.all_input_nodes
    ):
        return False
    needed[node] = None
    return True


def _is_known_input(node: fx.Node) -> bool:
    argument = node.meta.get("grapharg")
    if node.op != "placeholder" or argument is None or not argument.is_tensor or argument.source is None:
        return False
    return type(argument.example) is Tensor and _holds_integers(node)


def _is_pure(node: fx.Node) -> bool:
    known = node.op == "call_method" and node.target in _METHODS
    known = known or (node.op == "call_function" and node.target in _FUNCTIONS)
    return known and "out" not in node.kwargs and _holds_integers(node)


def _holds_integers(node: fx.Node) -> bool:
    """Whether all that it gives are integers or booleans that nothing has written into."""
    example = node.meta.get("example_value")
    tensors = example if isinstance(example, (tuple, list)) else (example,)
    return all(
        isinstance(t, Tensor) and not (t.dtype.is_floating_point or t.dtype.is_complex) and t._version == 0
        for t in tensors
    )

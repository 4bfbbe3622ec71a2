"""What PyTorch is known to trace wrongly, found in one of Dynamo's graphs and said."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator

import torch
from torch import fx

from graphopt.capture.mends.numpy_functions import rounding_function
from graphopt.graph.nodes import source_line

_PINV = (torch.linalg.pinv, torch.pinverse, "pinverse")
_WARNED = "graphopt_warned_of_wrong_upstream"


def warn_of_wrong_upstream(module: fx.GraphModule) -> None:
    """Say once for a graph what in it gives other numbers than eager, in whatever compiles it (docs/numerics.md)."""
    if not module.meta.get(_WARNED):
        module.meta[_WARNED] = True
        for what in dict.fromkeys(what for find in _FINDERS for what in find(module)):
            warnings.warn(f"graphopt: {what} (docs/numerics.md, Wrong in PyTorch itself)", stacklevel=2)


def _complex_pinv(module: fx.GraphModule) -> Iterator[str]:
    for node in module.graph.nodes:
        if node.op in ("call_function", "call_method") and node.target in _PINV and not node.kwargs.get("hermitian"):
            value = node.meta.get("example_value")
            if isinstance(value, torch.Tensor) and value.is_complex():
                yield (
                    f"linalg.pinv of complex numbers{_at(node)} is traced wrongly by PyTorch, values and gradient: "
                    "keep it out of the model"
                )


def _functions_in_transforms(module: fx.GraphModule) -> Iterator[str]:
    """Custom autograd Functions in `torch.func` transforms: Dynamo leaves nothing of them but lines of their code."""
    depth, functions = 0, None
    for node in module.graph.nodes:
        name = getattr(node.target, "__name__", "")
        depth += name.endswith("_increment_nesting") - name.endswith("_decrement_nesting")
        if depth and node.op in ("call_function", "call_method"):
            functions = _forward_lines() if functions is None else functions
            for path, line in re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or ""):
                for function, first, last in functions.get(path, ()):
                    if first <= int(line) <= last:
                        yield (
                            f"{function}{_at(node)} is inside of a torch.func transform, where PyTorch traces its "
                            "forward and ignores its own backward: keep it out of the transform, or the transform "
                            "out of the model"
                        )


def _functions_that_write(module: fx.GraphModule) -> Iterator[str]:
    """Custom autograd Functions that write in place what came into the graph, and return it itself."""
    for node in module.graph.nodes:
        written: list[int] = list(node.kwargs.get("dirty_idx", ()))
        if not any(node.args[2 + position].op == "placeholder" for position in written):
            continue
        body = module.get_submodule(node.args[0].target)
        assert isinstance(body, fx.GraphModule)
        inputs, returned = list(body.graph.find_nodes(op="placeholder")), body.graph.find_nodes(op="output")
        if any(inputs[position] in result.all_input_nodes for position in written for result in returned):
            yield (
                f"the autograd Function{_at(node)} writes its input in place (mark_dirty) right behind a graph break, "
                "where PyTorch traces a wrong gradient: let it return a new tensor"
            )


def _numpys_functions(module: fx.GraphModule) -> Iterator[str]:
    """In what torch.compile's backend is given; `optimize` lets NumPy run them."""
    for node in module.graph.nodes:
        if name := rounding_function(node):
            yield (
                f"NumPy's {name}{_at(node)} is traced as torch's, which rounds otherwise: use torch's in the model, or "
                "graphopt.optimize(), where NumPy runs it"
            )


def _forward_lines() -> dict[str, list[tuple[str, int, int]]]:
    """By file: names of autograd Functions, with the first and the last line of their forward."""
    found: dict[str, list[tuple[str, int, int]]] = {}
    pending = torch.autograd.Function.__subclasses__()
    while pending:
        function = pending.pop()
        pending += function.__subclasses__()
        code = getattr(function.forward, "__code__", None)
        if code is not None:
            lines = [line for _, _, line in code.co_lines() if line is not None]
            found.setdefault(code.co_filename, []).append((function.__name__, min(lines), max(lines)))
    return found


def _at(node: fx.Node) -> str:
    where = source_line(node)
    return f" at {where}" if where else ""


_FINDERS = (_complex_pinv, _functions_in_transforms, _functions_that_write, _numpys_functions)

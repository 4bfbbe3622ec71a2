"""A graph's generated code, calling operators directly.

fx writes `torch.ops.aten.mm.default(...)`: four attributes to look up and a Python function around the operator, half a
microsecond a call. Of a step with 150 small operators that was a fourteenth.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any

from torch import fx
from torch._ops import OpOverload
from torch.fx.graph import _BoxedCodeGen
from torch.fx.graph_module import _forward_from_src

from graphopt.emit.program import native

_OPERATOR = re.compile(r"\btorch\.ops\.(\w+\.\w+\.\w+)\(")
_MODULE = re.compile(r"\bself\.(\w+)\(")


#: Runs a graph inside of another one: given are that graph, what runs it, and its arguments.
AroundInner = Callable[[fx.GraphModule, Callable[..., Any], list[Any]], Any]


def direct(module: fx.GraphModule, around: AroundInner | None = None) -> Callable[..., Any]:
    """What `module.forward` does, graphs inside of it too; not to be used once a graph was changed.

    What is `around` runs each graph inside of it, if given.
    """
    python, without_python = _as_python(module, around), native(module) if _is_boxed(module) else None
    if without_python is None:
        return python

    def run(args: list[Any]) -> Any:
        results = without_python(args)
        return python(args) if results is NotImplemented else results

    return run


def _inner(module: fx.GraphModule, around: AroundInner | None) -> Callable[..., Any]:
    call = direct(module)
    return call if around is None else partial(around, module, call)


def _is_boxed(module: fx.GraphModule) -> bool:
    return isinstance(module.graph._codegen, _BoxedCodeGen)


def _as_python(module: fx.GraphModule, around: AroundInner | None) -> Callable[..., Any]:
    code = module.graph.python_code("self")
    found = dict(code.globals)
    operators = {str(node.target): node.target for node in module.graph.nodes if type(node.target) is OpOverload}
    inner = {name: child for name, child in module.named_children() if isinstance(child, fx.GraphModule)}

    def operator(call: re.Match[str]) -> str:
        if call[1] not in operators:
            return call[0]
        name = f"call_{call[1].replace('.', '_')}"
        found[name] = operators[call[1]]._op
        return f"{name}("

    def graph(call: re.Match[str]) -> str:
        if call[1] not in inner:
            return call[0]
        name = f"call_{call[1]}"
        if name not in found:
            found[name] = _inner(inner[call[1]], around)
        return f"{name}("

    source = _MODULE.sub(graph, _OPERATOR.sub(operator, code.src))
    return MethodType(_forward_from_src(source, found), module)

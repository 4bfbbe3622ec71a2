"""`math.exp` and `math.log` of numbers that may change from call to call, of which Dynamo makes constants.

torch has symbols for other functions of `math`, such as `math.sqrt` (torch/fx/experimental/sym_node.py), and sympy's
side of these two. What is made here is the same for them: a graph calls Python's own, so that bits are eager's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch.fx.experimental.proxy_tensor import get_proxy_mode, handle_sym_dispatch
from torch.fx.experimental.sym_node import SymNode
from torch.utils._sympy.functions import OpaqueUnaryFn_exp, OpaqueUnaryFn_log
from torch.utils._sympy.printers import PythonPrinter


@contextmanager
def math_functions() -> Iterator[None]:
    """Let Dynamo capture them; it looks for a symbol's function under this name."""
    with ExitStack() as stack:
        for function in (exp, log):
            stack.enter_context(mock.patch.object(torch, f"_sym_{function.__name__}", function, create=True))
            printer = f"_print_OpaqueUnaryFn_{function.__name__}"
            stack.enter_context(mock.patch.object(PythonPrinter, printer, _printed(function), create=True))
        yield


def exp(number: Any) -> Any:
    """`math.exp` of a number or a symbol."""
    return _applied(exp, math.exp, OpaqueUnaryFn_exp, number)


def log(number: Any, base: Any = None) -> Any:
    """`math.log` of a number or a symbol; to a base it is a quotient in Python too."""
    logarithm = _applied(log, math.log, OpaqueUnaryFn_log, number)
    return logarithm if base is None else logarithm / log(base)


def _applied(function: Callable[[Any], Any], of_float: Callable[[float], float], of_symbol: Any, number: Any) -> Any:
    if isinstance(number, torch.SymInt):
        number = torch.sym_float(number)
    if not isinstance(number, torch.SymFloat):
        return of_float(number)
    if get_proxy_mode():
        return handle_sym_dispatch(function, (number,), {})
    node = number.node
    hint = of_float(node.hint) if node.has_hint() else None
    call, _ = node.shape_env._create_fx_call_function(function, (node.fx_node,))
    return torch.SymFloat(SymNode(of_symbol(node.expr), node.shape_env, float, hint, fx_node=call))


def _printed(function: Callable[[Any], Any]) -> Callable[[Any, Any], str]:
    """How a guard that Dynamo writes in Python says it."""
    return lambda printer, expression: f"math.{function.__name__}({printer._print(expression.args[0])})"

"""Numbers that may change from call to call, where Dynamo can go on with a constant alone: they become one, guarded.

Dynamo fails where one decides a mode (`torch.autocast(..., enabled=self.n > 2)`), and breaks the graph where it is a
flag of a function. Which of its code fails without a constant, and which asks for one only to learn whether there
is one, cannot be told before it has failed: then the frame is captured once more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch._dynamo.exc import InternalTorchDynamoError
from torch._dynamo.variables import ConstantVariable
from torch._dynamo.variables.base import AsPythonConstantNotImplementedError
from torch._dynamo.variables.tensor import SymNodeVariable, TensorVariable
from torch._dynamo.variables.torch import TorchCtxManagerClassVariable, TorchInGraphFunctionVariable

_TAKE_SYMBOLS = frozenset((torch.sym_not, torch.sym_ite, torch.sym_int, torch.sym_float))
_MODES = (torch.set_grad_enabled, torch.inference_mode)


@contextmanager
def flags_are_constants() -> Iterator[None]:
    """Let what is given to a function or a method of torch as a truth value be one: kernels take no symbols there."""
    of_function, of_method = TorchInGraphFunctionVariable.call_function, TensorVariable.call_method
    of_context = TorchCtxManagerClassVariable.call_function

    def function(called: Any, tx: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        if called.value not in _TAKE_SYMBOLS:
            args, kwargs = _with_flags(args, kwargs)
        return of_function(called, tx, args, kwargs)

    def method(tensor: Any, tx: Any, name: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        return of_method(tensor, tx, name, *_with_flags(args, kwargs))

    def context(called: Any, tx: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        # of these, Dynamo knows the argument by its place alone
        if called.value in _MODES and "mode" in kwargs:
            args, kwargs = [*args, kwargs["mode"]], {name: each for name, each in kwargs.items() if name != "mode"}
        return of_context(called, tx, args, kwargs)

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(TorchCtxManagerClassVariable, "call_function", context))
        stack.enter_context(mock.patch.object(TorchInGraphFunctionVariable, "call_function", function))
        stack.enter_context(mock.patch.object(TensorVariable, "call_method", method))
        yield


def _with_flags(args: list[Any], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    return [_flag(each) for each in args], {name: _flag(each) for name, each in kwargs.items()}


def _flag(given: Any) -> Any:
    is_flag = isinstance(given, SymNodeVariable) and isinstance(given.sym_num, torch.SymBool)
    if is_flag and given.sym_num.node.has_hint():  # what comes from data has no value yet
        return ConstantVariable.create(given.evaluate_expr())
    return given


def captured_with_constants(capture: Callable[[], Any]) -> Any:
    """What `capture` returns, with those numbers made constants without which Dynamo fails.

    Where Dynamo does not say which ones it misses, all are.
    """
    asked: set[str] = set()
    while True:
        try:
            with _constants(asked):
                return capture()
        except (InternalTorchDynamoError, AssertionError) as error:
            missing = _missing(error) - asked
            if not missing:
                failed = error
                break
            asked |= missing
    try:
        with torch._dynamo.config.patch(specialize_int=True, specialize_float=True):
            return capture()
    except (InternalTorchDynamoError, AssertionError):
        raise failed from None


@contextmanager
def _constants(asked: set[str]) -> Iterator[None]:
    """Let Dynamo take for constants what is `asked` for: expressions of symbols, which it names by their source."""
    before = SymNodeVariable.as_python_constant

    def constant(number: SymNodeVariable) -> Any:
        return number.evaluate_expr() if str(number.sym_num) in asked else before(number)

    with mock.patch.object(SymNodeVariable, "as_python_constant", constant):
        yield


def _missing(error: BaseException | None) -> set[str]:
    """Of what numbers Dynamo failed to get the constant, whatever error it made of that."""
    found = set()
    while error is not None:
        if isinstance(error, AsPythonConstantNotImplementedError) and isinstance(error.vt, SymNodeVariable):
            found.add(str(error.vt.sym_num))
        error = error.__cause__ or error.__context__
    return found

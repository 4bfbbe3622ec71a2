"""NumPy's functions in a forward: Dynamo traces torch's of the same name, which round otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch._dynamo.utils as dynamos
from torch import fx
from torch._dynamo.exc import unimplemented
from torch._dynamo.variables import ConstantVariable, NumpyVariable, VariableTracker
from torch._dynamo.variables.misc import get_np_to_tnp_map, np_constant_collections_map

#: What moves and chooses elements, makes constants, or rounds each element exactly: the same in torch, bit by bit.
_MOVED = (
    "array asarray ascontiguousarray astype atleast_1d atleast_2d broadcast_to concatenate copy expand_dims eye fill "
    "flatten flip full full_like getitem hstack identity item moveaxis ones ones_like ravel repeat reshape roll "
    "setitem squeeze stack swapaxes take tile transpose tril triu view vstack where zeros zeros_like"
)
_ROUNDED = (
    "abs absolute add all amax amin any bitwise_and bitwise_or bitwise_xor ceil clip divide eq equal floor ge greater "
    "greater_equal gt invert isfinite isinf isnan le less less_equal logical_and logical_not logical_or logical_xor "
    "lt max maximum min minimum mul multiply ne neg negative not_equal pos rint sign sqrt square sub subtract "
    "true_divide truediv trunc"
)
_OPERATORS = "iadd isub imul itruediv and_ or_ xor not_"
_EXACT = frozenset((*_MOVED.split(), *_ROUNDED.split(), *_OPERATORS.split()))
#: Elements of an array that is made from constants alone, and becomes one.
_MOST_CONSTANTS = 1024


@contextmanager
def numpy_functions() -> Iterator[None]:
    """Let Dynamo end a graph in front of a function of NumPy's that torch has with other bits, so that NumPy runs it.

    Of constants alone NumPy computes it while the model is captured.
    """
    call_function = NumpyVariable.call_function

    def called(function: Any, tx: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        constant = _constant(function.value, args, kwargs)
        if constant is None:
            return call_function(function, tx, args, kwargs)
        made = VariableTracker.build(tx, constant.tolist())
        return call_function(
            NumpyVariable(np.array), tx, [made], {"dtype": ConstantVariable.create(str(constant.dtype))}
        )

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(NumpyVariable, "call_function", called))
        for wrapper in (dynamos.numpy_to_tensor_wrapper, dynamos.numpy_method_wrapper, dynamos.numpy_operator_wrapper):
            stack.enter_context(mock.patch.object(wrapper, "__init__", _refusing(wrapper.__init__)))
        yield


def rounding_function(node: fx.Node) -> str:
    """The function of NumPy's that a node of Dynamo's is traced from, where torch's has other bits; or ""."""
    name: str = getattr(node.target, "__name__", "")
    wrappers = (dynamos.numpy_to_tensor_wrapper, dynamos.numpy_method_wrapper, dynamos.numpy_operator_wrapper)
    if not isinstance(node.target, wrappers) or _is_exact(name.removeprefix("wrapped_")):
        return ""
    return name.removeprefix("wrapped_")


def _is_exact(name: str) -> bool:
    return name.strip("_") in _EXACT or name in _EXACT


def _refusing(make: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    def make_if_exact(wrapper: Any, function: Any) -> None:
        name = function if isinstance(function, str) else function.__name__
        if not _is_exact(name):
            unimplemented(
                gb_type="a function of NumPy's that rounds otherwise in torch",
                context=name,
                explanation=f"NumPy's {name} rounds otherwise than torch's, so NumPy runs it.",
                hints=[f"Use torch's {name} in the model."],
            )
        make(wrapper, function)

    return make_if_exact


def _constant(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The result, an array or a scalar of NumPy's, of a function that rounds and is given constants alone; or None."""
    known = get_np_to_tnp_map().get(function)
    is_drawn = known is None or known.__module__ == "torch._numpy.random"
    if is_drawn or known in np_constant_collections_map or _is_exact(getattr(known, "__name__", "")):
        return None
    if not all(each.is_python_constant() for each in (*args, *kwargs.values())):
        return None
    given = {name: each.as_python_constant() for name, each in kwargs.items()}
    result = function(*(each.as_python_constant() for each in args), **given)
    is_array = isinstance(result, (np.ndarray, np.generic))
    return result if is_array and result.size <= _MOST_CONSTANTS and result.dtype.kind in "biuf" else None

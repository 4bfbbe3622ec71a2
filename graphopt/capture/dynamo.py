"""Calling through torch.compile: a frame of one's own, no silent way back to eager, our errors as they are."""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from types import CodeType
from typing import Any
from weakref import ref

import torch
from torch._dynamo.convert_frame import CatchErrorsWrapper, compile_lock
from torch._dynamo.exc import (
    BackendCompilerFailed,
    InternalTorchDynamoError,
    TorchDynamoException,
    TorchRuntimeError,
    UserError,
)
from torch._dynamo.external_utils import wrap_inline

from graphopt.base.errors import CaptureError, GraphoptError
from graphopt.capture.captures import code_being_captured
from graphopt.capture.changing_sizes import CONSTANT, Sizes, changing_sizes
from graphopt.capture.mends.constant_numbers import captured_with_constants, flags_are_constants
from graphopt.capture.mends.eagers_kernels import eagers_kernels
from graphopt.capture.mends.known_sums import known_sums
from graphopt.capture.mends.math_functions import math_functions
from graphopt.capture.mends.numpy_functions import numpy_functions
from graphopt.capture.mends.out_arguments import out_arguments
from graphopt.capture.mends.true_strides import true_strides
from graphopt.capture.mends.users_functions import users_functions
from graphopt.capture.numbers import NUMBERS_ARE_INPUTS
from graphopt.capture.recurrent.layers import few_fakes
from graphopt.capture.recurrent.packed import packed_sequences
from graphopt.capture.unguarded import Unguarded
from graphopt.device.snapshot import generators_kept
from graphopt.graph.nodes import without_own_frames

# Every set of shapes is a plan of its own; torch's limit of 8 would send the ninth to eager. Who calls bounds those
# that are there at once; of those that there ever were nothing is left to bound.
_NO_LIMIT = 1 << 62

# What only logs must not break a graph in two; it is left out of what is captured, as Dynamo cannot move it out of
# functions that it inlines.
_FUNCTIONS_THAT_LOG: set[Callable[..., Any]] = {
    warnings.warn,
    *(logging.debug, logging.info, logging.warning, logging.error, logging.critical, logging.exception, logging.log),
}

_OWN = "graphopt_session_"
_session_numbers = itertools.count(1)


@generators_kept()
def compiled(
    call: Callable[..., Any],
    backend: Callable[..., Any],
    while_capturing: Callable[[CodeType], AbstractContextManager[None]],
    sizes: Sizes = CONSTANT,
    whole: bool = False,
) -> Callable[..., Any]:
    """`call` through torch.compile, by `own_frame`; in `whole` a break is an error.

    Around each capture, and around nothing else, are our settings of Dynamo and `while_capturing(code)` of the frame: a
    call that needs no capture does not pay for them, and no other thread sees them meanwhile. Where methods or hooks
    are others than were captured, which Dynamo does not guard, all is captured anew.
    """
    context: Any = torch._dynamo.optimize(backend=backend, nopython=whole)
    callback, unguarded = getattr(context, "callback", None), Unguarded()
    if isinstance(callback, CatchErrorsWrapper):  # where Dynamo is switched off (TORCHDYNAMO_DISABLE) there is none
        context.callback = _Capturing(callback, while_capturing, unguarded, sizes)
    run = context(own_frame(call))

    def checked(*args: Any, **kwargs: Any) -> Any:
        unguarded.forget_if_changed()
        return run(*args, **kwargs)

    return checked


class _Capturing(CatchErrorsWrapper):
    """What the interpreter calls for each frame that has to be captured, with our settings around it."""

    def __init__(
        self,
        callback: CatchErrorsWrapper,
        while_capturing: Callable[[CodeType], AbstractContextManager[None]],
        unguarded: Unguarded,
        sizes: Sizes,
    ):
        super().__init__(callback._torchdynamo_orig_backend, callback.hooks)
        # Dynamo keeps this: it must not keep the model's classes, nor what their methods hold
        self._while_capturing, self._unguarded, self._sizes = while_capturing, ref(unguarded), sizes

    def __call__(self, frame: Any, *rest: Any) -> Any:
        capture, unguarded = super().__call__, self._unguarded()
        noted = unguarded.noted(frame.f_code) if unguarded is not None else nullcontext()
        with compile_lock, self._while_capturing(frame.f_code), generators_kept(), settings(self._sizes), noted:
            try:
                return captured_with_constants(lambda: capture(frame, *rest))
            except (TorchRuntimeError, InternalTorchDynamoError, UserError) as error:
                if not self._sizes.has_some:
                    raise
                # torch has functions that take no symbol for a size
                self._sizes.cannot_change(f"{type(error).__name__}: {error}")
            return captured_with_constants(lambda: capture(frame, *rest))


def own_frame(call: Callable[..., Any]) -> Callable[..., Any]:
    """`call` behind a frame that Dynamo captures whole, and whose code is this session's alone.

    Of a module of torch's own (nn.Sequential) Dynamo would skip the frame and take the children apart.
    What it has compiled, and that it has given a frame up, it keeps with the code object: a shared one
    would let one model's failure send every later model to eager.
    """
    frame: Any = wrap_inline(call)
    frame.__code__ = frame.__code__.replace(co_name=f"{_OWN}{next(_session_numbers)}")
    return frame  # type: ignore[no-any-return]


def is_own_frame() -> bool:
    """Inside of a backend: whether the graph begins where `own_frame` does.

    Where Dynamo gives up a frame (a break inside of a loop, a `try` or a generator), it runs it as it is and captures
    what it calls, each function for itself: a graph that ends without a break is then not all of the model.
    """
    return code_being_captured().co_name.startswith(_OWN)


def is_called_by_graphopt() -> bool:
    """Inside of Dynamo: whether it is at work inside of `settings`."""
    return bool(torch._dynamo.config.recompile_limit == _NO_LIMIT)


@contextmanager
def settings(sizes: Sizes = CONSTANT) -> Iterator[None]:
    """torch.compile as we need it: without its silent ways back to eager, and with what it is mended by."""
    limits = {
        **NUMBERS_ARE_INPUTS,
        "recompile_limit": _NO_LIMIT,
        "accumulated_recompile_limit": _NO_LIMIT,
        "suppress_errors": False,
        # torch 2.11 would not look again at parameters of a module that has no new ones: freezing would go unnoticed
        "skip_tensor_guards_with_matching_dict_tags": False,
        # inside of DDP, Dynamo would cut the graph at the borders of DDP's buckets
        "optimize_ddp": False,
        # hooks that come or go after a capture change what the model computes
        "skip_nnmodule_hook_guards": False,
        # nn.LSTM, nn.GRU and nn.RNN would break the graph; `capture.recurrent.layers` replaces what they call
        "allow_rnn": True,
        # what is drawn from NumPy would be traced as draws from torch's generator
        "use_numpy_random_stream": True,
        "ignore_logging_functions": (
            torch._dynamo.config.ignore_logging_functions | _FUNCTIONS_THAT_LOG | _methods_that_log()
        ),
    }
    of_numbers = (flags_are_constants, math_functions, known_sums)
    mends = (true_strides, eagers_kernels, few_fakes, packed_sequences, out_arguments, users_functions, numpy_functions)
    with torch._dynamo.config.patch(limits), ExitStack() as stack:
        for each in (*of_numbers, *mends):
            stack.enter_context(each())
        stack.enter_context(changing_sizes(sizes))
        yield


def _methods_that_log() -> set[Callable[..., Any]]:
    """Methods of every logger, those that other libraries have added too, such as transformers' `warning_once`."""
    names = ("debug", "info", "warning", "warn", "error", "critical", "fatal", "exception", "log")
    added = ("warning_once", "warning_advice", "info_once")
    return {getattr(logging.Logger, name) for name in (*names, *added) if hasattr(logging.Logger, name)}


@contextmanager
def graphopt_errors() -> Iterator[None]:
    """Errors raised inside a compilation as what they are: ours unwrapped, torch's as CaptureError.

    What another thread is capturing is waited for: PyTorch's mark that something is traced is one for all threads.
    """
    with compile_lock:
        pass
    try:
        yield
    except BackendCompilerFailed as error:
        inner = error.inner_exception
        if isinstance(inner, GraphoptError):
            raise inner from inner.__cause__
        said = without_own_frames(f"{type(inner).__name__}: {inner}")
        raise CaptureError(f"the captured graph could not be compiled: {said}") from error
    except TorchDynamoException as error:
        said = without_own_frames(str(error))
        raise CaptureError(f"torch.compile could not capture the model: {said}") from error

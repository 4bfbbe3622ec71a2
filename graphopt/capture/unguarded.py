"""What a captured model's code is made of that Dynamo does not look at again: methods, and hooks of all modules."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter, is_
from types import CodeType, FunctionType
from typing import Any
from unittest import mock
from weakref import ref

import torch
import torch.nn.modules.module as of_all
from torch._C._dynamo.eval_frame import reset_code
from torch._dynamo.symbolic_convert import InliningInstructionTranslator
from torch._dynamo.variables.user_defined import UserDefinedClassVariable, UserDefinedObjectVariable

logger = logging.getLogger("graphopt")

_TORCH = torch.__path__[0]
_code = attrgetter("__code__")


@dataclass(frozen=True)
class _Listed:
    """What is to be as it was, as lists that are compared in C; methods that a class gives as they are."""

    functions: tuple[FunctionType, ...]
    codes: tuple[CodeType, ...]
    owners: tuple[type, ...]
    names: tuple[str, ...]
    methods: tuple[FunctionType, ...]
    #: Class methods and the like, of which a class makes another object at each look.
    others: tuple[tuple[type, str, FunctionType], ...]

    @classmethod
    def of(cls, codes: dict[FunctionType, CodeType], methods: dict[tuple[type, str], FunctionType]) -> _Listed:
        """All of it; looked through anew where something joins it."""
        plain: list[tuple[type, str, FunctionType]] = []
        others: list[tuple[type, str, FunctionType]] = []
        for (owner, name), method in methods.items():
            (plain if getattr(owner, name, None) is method else others).append((owner, name, method))
        owners, names, given = zip(*plain, strict=True) if plain else ((), (), ())
        return cls(tuple(codes), tuple(codes.values()), owners, names, given, tuple(others))

    def is_so(self) -> bool:
        """Whether all of it is as it was."""
        try:
            return (
                all(map(is_, map(_code, self.functions), self.codes))
                and all(map(is_, map(getattr, self.owners, self.names), self.methods))
                and all(_method(owner, name) is method for owner, name, method in self.others)
            )
        except AttributeError:  # a class has lost a method
            return False


class Unguarded:
    """The methods that were captured, as their classes had them, and the hooks that there were for all modules.

    Dynamo guards attributes of objects, what is global, and the hooks of each module. It takes for granted that a class
    has the methods that it had, that a function has its code, and that no hook for all modules comes.
    """

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._hooks = hooks_of_all_modules()
        self._methods: dict[tuple[type, str], FunctionType] = {}
        self._codes: dict[FunctionType, CodeType] = {}
        self._captured: dict[int, ref[CodeType]] = {}
        self._listed: _Listed | None = None

    @contextmanager
    def noted(self, code: CodeType) -> Iterator[None]:
        """Inside, a frame with this code is captured, with all that it calls."""
        self._captured[id(code)] = ref(code)
        build = InliningInstructionTranslator.build_inline_tracer

        def noting(parent: Any, function: Any, args: list[Any], *rest: Any, **options: Any) -> Any:
            self._note(getattr(function, "fn", None), [getattr(function, "obj", None), *args[:1]])
            return build(parent, function, args, *rest, **options)

        with mock.patch.object(InliningInstructionTranslator, "build_inline_tracer", staticmethod(noting)):
            yield

    def forget_if_changed(self) -> None:
        """Let Dynamo forget what was captured where it is no longer what would be run."""
        # asked in every call, of a hundred functions in a large model: words are looked for only where one has changed
        self._listed = self._listed or _Listed.of(self._codes, self._methods)
        if self._listed.is_so() and hooks_of_all_modules() == self._hooks:
            return
        what = self._changed()
        if not what:
            return
        logger.info("captured anew, as %s", what)
        for captured in self._captured.values():
            if (code := captured()) is not None:
                reset_code(code)
        self._begin()

    def _note(self, function: object, owners: list[Any]) -> None:
        if not isinstance(function, FunctionType):
            return
        self._listed = None
        if not function.__code__.co_filename.startswith(_TORCH):
            self._codes[function] = function.__code__
        for owner in owners:
            if isinstance(owner, (UserDefinedObjectVariable, UserDefinedClassVariable)):
                self._note_method(function, owner.value if isinstance(owner.value, type) else type(owner.value))

    def _note_method(self, function: FunctionType, called_on: type) -> None:
        for owner in called_on.__mro__:
            for name in _names(owner, function):
                self._codes[function] = function.__code__
                for each in (called_on, owner):
                    # behind super() it is not the method that the class itself has
                    if _method(each, name) is function:
                        self._methods[each, name] = function

    def _changed(self) -> str:
        if hooks_of_all_modules() != self._hooks:
            return "there are other hooks for all modules (register_module_forward_hook and the like)"
        for function, code in self._codes.items():
            if function.__code__ is not code:
                return f"{function.__qualname__} has other code"
        for (owner, name), method in self._methods.items():
            if _method(owner, name) is not method:
                return f"{owner.__qualname__}.{name} is another method"
        return ""


def hooks_of_all_modules() -> tuple[tuple[int, ...], ...]:
    """The handles of the hooks that run for every module; () where there is none, which is told fast."""
    if not (
        of_all._global_forward_hooks
        or of_all._global_forward_pre_hooks
        or of_all._global_backward_hooks
        or of_all._global_backward_pre_hooks
        or of_all._global_module_registration_hooks
        or of_all._global_parameter_registration_hooks
        or of_all._global_buffer_registration_hooks
    ):
        return ()
    return (
        tuple(of_all._global_forward_hooks),
        tuple(of_all._global_forward_pre_hooks),
        tuple(of_all._global_backward_hooks),
        tuple(of_all._global_backward_pre_hooks),
        tuple(of_all._global_module_registration_hooks),
        tuple(of_all._global_parameter_registration_hooks),
        tuple(of_all._global_buffer_registration_hooks),
    )


def _names(owner: type, function: FunctionType) -> list[str]:
    return [name for name, each in vars(owner).items() if getattr(each, "__func__", each) is function]


def _method(owner: type, name: str) -> object:
    found = getattr(owner, name, None)
    return getattr(found, "__func__", found)

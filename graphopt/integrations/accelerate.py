"""Accelerate, which has a list of its own of torch.compile's backends."""

from __future__ import annotations

from typing import Any

from accelerate.utils import DynamoBackend

_NAME = "GRAPHOPT"


def register_backend() -> None:
    """Make "graphopt" one of the names that accelerate knows, in this process.

    `dynamo_backend="graphopt"`, `TorchDynamoPlugin(backend="graphopt", ...)` and the Trainer's
    `torch_compile_backend="graphopt"` then are torch.compile's backend of that name, as without accelerate.
    """
    # a member that is made as it is asked for, by the hook that enum has for that
    member = str.__new__(DynamoBackend, _NAME)
    member._name_ = member._value_ = _NAME

    def missing(_: type[DynamoBackend], value: Any) -> DynamoBackend | None:
        return member if value == _NAME else None

    DynamoBackend._missing_ = classmethod(missing)

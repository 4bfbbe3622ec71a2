"""The importer as a backend of onnx's own test suite: a file, what goes in, and what comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx.backend.base import Backend, BackendRep
from torch import Tensor

from graphopt.base.errors import OnnxError
from graphopt.formats.onnx.model import import_model
from graphopt.formats.onnx.tensors import to_torch

NOWHERE = Path("/nonexistent")


class Prepared(BackendRep):
    """A model that was checked; it is imported when it is known what goes in."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model

    def run(self, inputs: Sequence[Any], **_: Any) -> tuple[Tensor, ...]:
        """The outputs, in evaluation.

        Inputs that say how large something is must be constants of a plan: where the importer asks for that, whole
        numbers become such, and then all.
        """
        given = {each.name: as_tensor(value) for each, value in zip(self.model.graph.input, inputs, strict=False)}
        whole = {name: value for name, value in given.items() if not value.dtype.is_floating_point}
        for known in ({}, whole, given):
            try:
                return self._run(given, known)
            except OnnxError as error:
                if "depends on what" not in str(error) or known is given:
                    raise
        raise AssertionError

    def _run(self, given: Mapping[str, Tensor], known: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        free = {name: value for name, value in given.items() if name not in known}
        empty = {f"{name}@{axis}": 0 for name, v in free.items() for axis, size in enumerate(v.shape) if not size}
        found = import_model(self.model, NOWHERE, empty, known=known)
        with torch.no_grad():
            outputs: tuple[Tensor, ...] = found.module.eval()(*free.values())
        return outputs


class OnnxBackend(Backend):
    """`prepare(model).run(inputs)`."""

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **_: Any) -> Prepared:
        """The model, to be run."""
        super().prepare(model, device)
        return Prepared(model)


def as_tensor(value: Any) -> Tensor:
    """An array or a tensor of a file, as torch has it; raises OnnxError for what is neither."""
    if isinstance(value, onnx.TensorProto):
        return to_torch(value, NOWHERE)
    array = np.asarray(value)
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    if array.dtype.kind not in "fiubc":
        raise OnnxError("no tensor of numbers")
    return torch.from_numpy(array.copy())

"""What an operator is told of its node, and how it reads what must be known before the model runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from onnx import TensorProto
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from graphopt.base.errors import OnnxError

#: From a node and its inputs (None where one is left out) to its output, or a tuple of them.
Handler = Callable[..., Any]
#: Puts a layer into the model, and calls it.
Layer = Callable[..., Any]

DTYPES: Mapping[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.INT8: torch.int8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.UINT8: torch.uint8,
    TensorProto.UINT16: torch.uint16,
    TensorProto.UINT32: torch.uint32,
    TensorProto.UINT64: torch.uint64,
    TensorProto.BOOL: torch.bool,
    TensorProto.COMPLEX64: torch.complex64,
    TensorProto.COMPLEX128: torch.complex128,
}


@dataclass(frozen=True)
class OnnxNode:
    """One node: its attributes as Python values (tensors as torch has them), and which outputs are read.

    `layer(module, *inputs)` makes `module` a part of the model and calls it: for what differs in training. `batch` is
    the one that the file was made for, and the one that is asked for.
    """

    op: str
    name: str
    opset: int
    attributes: Mapping[str, Any]
    wanted: tuple[bool, ...]
    layer: Layer
    batch: tuple[int, int] | None = None

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, or what ONNX has where it is left out."""
        return self.attributes.get(name, default)

    def dtype(self, name: str, default: torch.dtype) -> torch.dtype:
        """An attribute that names a dtype; raises OnnxError for one that torch has not."""
        return torch_dtype(self.attributes[name]) if self.attributes.get(name) else default

    def wants(self, output: int) -> bool:
        """Whether an output is read."""
        return output < len(self.wanted) and self.wanted[output]

    def refuse(self, **forms: tuple[Any, ...]) -> None:
        """Raise OnnxError where an attribute has a value that is not among the ones named; the first is the default."""
        for name, allowed in forms.items():
            value = self.get(name, allowed[0])
            if value not in allowed:
                raise OnnxError(f"{name}={value!r} is not known here, only {', '.join(map(repr, allowed))}")


def torch_dtype(number: int) -> torch.dtype:
    """A dtype by ONNX's number; raises OnnxError for one that torch does not compute in."""
    if number not in DTYPES:
        name = TensorProto.DataType.Name(number) if number in TensorProto.DataType.values() else str(number)
        raise OnnxError(f"the type {name} is not known here")
    return DTYPES[number]


def is_known(value: Any) -> bool:
    """Whether a value depends on neither the model's inputs nor its weights."""
    return not isinstance(value, FakeTensor)


def known(value: Tensor, what: str) -> Tensor:
    """The value itself; raises OnnxError where it depends on the model's inputs."""
    if not is_known(value):
        raise OnnxError(
            f"its {what} depends on what the model's inputs hold, which a plan cannot know: make it a constant of the "
            "file, or export the model with fixed sizes"
        )
    return value


def integers(value: Tensor | None, what: str) -> list[int]:
    """What a small integer tensor holds, in one list; raises OnnxError as `known`."""
    if value is None:
        raise OnnxError(f"its {what} is missing")
    flat = known(value, what).reshape(-1)
    return [int(number) for number in flat.tolist()]


def numbers(value: Tensor, what: str) -> list[float]:
    """What a small tensor of numbers holds, in one list; raises OnnxError as `known`."""
    return [float(number) for number in known(value, what).reshape(-1).tolist()]


def listed(node: OnnxNode, name: str, given: Tensor | None, default: list[int] | None = None) -> list[int] | None:
    """A list of integers that old opsets have as an attribute and new ones as an input."""
    if given is not None:
        return integers(given, name)
    found = node.get(name)
    return default if found is None else [int(number) for number in found]


def axis_of(axis: int, dim: int) -> int:
    """An axis from 0 on; raises OnnxError where a tensor of `dim` dimensions has none such."""
    if not -dim <= axis < max(dim, 1):
        raise OnnxError(f"axis {axis} of a tensor of {dim} dimensions")
    return axis % dim if dim else 0


def make_layer(node: OnnxNode, module: nn.Module, *inputs: Any) -> Any:
    """Call `module` as a layer of the model."""
    return node.layer(module, *inputs)

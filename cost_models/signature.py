"""What an op's price depends on: the operator and the layout of its arguments, not their contents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch.fx import Node

from graphopt.device.storages import tensors_in
from graphopt.graph.roles import EFFECT, PRICE

#: What a number of a graph is, where it is a symbol.
At = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def __repr__(self) -> str:
        return f"{self.dtype}{list(self.shape)}:{list(self.stride)}@{self.device.type}"

    @property
    def extent(self) -> int:
        """Elements of the smallest storage that holds the tensor: an expanded dimension takes none."""
        if 0 in self.shape:
            return 0
        return 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.stride, strict=True))

    @property
    def extent_bytes(self) -> int:
        """Bytes from the first element to the last one, gaps included."""
        return self.extent * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Slot:
    """Stands in `Signature.args` for the tensor `tensors[index]`."""

    index: int

    def __repr__(self) -> str:
        return f"%{self.index}"


@dataclass(frozen=True, slots=True)
class Signature:
    """A call that can be made again with other tensors; equal `key`, equal price."""

    target: Any
    tensors: tuple[TensorSpec, ...]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output_bytes: int
    key: str

    @property
    def device(self) -> torch.device:
        """Where the op runs: its first tensor's device, or the one that it makes a tensor on."""
        return self.tensors[0].device if self.tensors else torch.device(self.kwargs.get("device") or "cpu")

    @property
    def total_bytes(self) -> int:
        """Of the inputs and the outputs together."""
        return self.output_bytes + sum(spec.extent_bytes for spec in self.tensors)


class _Unknown(Exception):
    """A size that is not known before the graph runs, or an argument that is no plain data."""


def signature(node: Node, at: At | None = None) -> Signature | None:
    """The signature of `node`; None where the op cannot be run on its own. `at` says what symbols stand for.

    That is so for higher-order ops, Python functions, collectives (they would wait for other ranks),
    ops with effects of their own (they would print), tensors that are not strided, and sizes that only the run reveals.
    """
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or not _stands_alone(target) or PRICE in node.meta:
        return None
    if node.meta.get(EFFECT) and target is not torch.ops.aten._linalg_check_errors.default:
        return None
    tensors: dict[Node, Slot] = {}
    specs: list[TensorSpec] = []
    number = at or concrete
    try:
        args = tuple(_lower(argument, tensors, specs, number) for argument in node.args)
        kwargs = {name: _lower(argument, tensors, specs, number) for name, argument in node.kwargs.items()}
        outputs = [tensor_spec(tensor, number) for tensor in tensors_in(node.meta.get("val"))]
    except _Unknown:
        return None
    key = f"{_name(target)} {specs} {args} {kwargs}"
    return Signature(target, tuple(specs), args, kwargs, sum(spec.extent_bytes for spec in outputs), key)


def call_signature(target: Any, args: Any, kwargs: Any, made: Any, device: torch.device) -> Signature | None:
    """The signature of a call on tensors without memory, as it would be on `device`; None as in `signature`."""
    tensors: dict[int, Slot] = {}
    specs: list[TensorSpec] = []

    def lower(argument: Any) -> Any:
        if isinstance(argument, torch.Tensor):
            if id(argument) not in tensors:
                tensors[id(argument)] = Slot(len(specs))
                specs.append(replace(tensor_spec(argument), device=device))
            return tensors[id(argument)]
        if isinstance(argument, (list, tuple)):
            return type(argument)(lower(item) for item in argument)
        return _plain(argument)

    try:
        lowered, named = lower(tuple(args)), {name: lower(value) for name, value in (kwargs or {}).items()}
        output_bytes = sum(tensor_spec(tensor).extent_bytes for tensor in tensors_in(made))
    except _Unknown:
        return None
    return Signature(target, tuple(specs), lowered, named, output_bytes, f"{_name(target)} {specs} {lowered} {named}")


def node_device(node: Node) -> torch.device | None:
    """Where the op runs: the device of its first tensor output, else input; None where it has neither."""
    for value in (node.meta.get("val"), *(argument.meta.get("val") for argument in node.all_input_nodes)):
        for tensor in tensors_in(value):
            return tensor.device
    return None


def tensor_spec(tensor: torch.Tensor, number: At | None = None) -> TensorSpec:
    """Layout of a (fake) tensor, with its sizes as they were at capture; raises _Unknown where there is none."""
    if tensor.layout is not torch.strided:
        raise _Unknown
    number = number or concrete
    shape = tuple(int(number(size)) for size in tensor.shape)
    return TensorSpec(shape, tuple(int(number(step)) for step in tensor.stride()), tensor.dtype, tensor.device)


def concrete(value: Any) -> Any:
    """A symbolic size as the number it was at capture; raises _Unknown where only the run reveals it."""
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        hint = value.node.hint if value.node.has_hint() else None
        if hint is None:
            raise _Unknown
        return hint
    return value


def known_size(value: Any, at: At | None = None, otherwise: int = 1) -> int:
    """`concrete`, or what `at` says, as an int; `otherwise` where only the run reveals it."""
    try:
        return int((at or concrete)(value))
    except _Unknown:
        return otherwise


def _lower(argument: Any, tensors: dict[Node, Slot], specs: list[TensorSpec], number: At) -> Any:
    if isinstance(argument, Node):
        value = argument.meta.get("val")
        if not isinstance(value, torch.Tensor):
            return _lower(value, tensors, specs, number)
        if argument not in tensors:
            tensors[argument] = Slot(len(specs))
            specs.append(tensor_spec(value, number))
        return tensors[argument]
    if isinstance(argument, (list, tuple)):
        return type(argument)(_lower(item, tensors, specs, number) for item in argument)
    return _plain(argument, number)


def _plain(argument: Any, number: At | None = None) -> Any:
    argument = (number or concrete)(argument)
    if isinstance(argument, _PLAIN):
        return argument
    raise _Unknown


_PLAIN = (
    *(type(None), bool, int, float, complex, str),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format),
)


@cache
def _name(target: torch._ops.OpOverload) -> str:
    return str(target)


@cache
def _stands_alone(target: torch._ops.OpOverload) -> bool:
    return not any(word in target.namespace for word in ("c10d", "dtensor", "symm_mem", "fsdp", "profiler"))

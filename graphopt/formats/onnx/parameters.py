"""The constants of a file that train, as parameters with the file's names."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from onnx import NodeProto
from torch import Tensor, nn

from graphopt.formats.onnx.notes import Notes, is_made
from graphopt.formats.onnx.ops.node import is_known
from graphopt.formats.onnx.recorder import Recorder, put
from graphopt.formats.onnx.tensors import TensorKind
from graphopt.formats.onnx.weights import ALIKE, ONES, SETTINGS, WEIGHTS, Uses

_NOT_IN_NAMES = re.compile(r"\W")
#: Larger ones are not looked at for being all the same number.
_MOST_LOOKED_AT = 2**20


class Parameters:
    """Parameters of `root`, as they are found among a file's values."""

    def __init__(self, root: nn.Module, recorder: Recorder, uses: Uses, notes: Notes, *, with_weights: bool) -> None:
        self.root, self.recorder, self.uses, self.notes, self.with_weights = root, recorder, uses, notes, with_weights
        self._targets: set[str] = set()
        self._numbers: dict[str, Tensor] = {}
        #: Equal ones that an exporter merged, and whether the first layer has its own.
        self._merged: dict[str, bool] = {}

    def of_initialiser(self, name: str, kind: TensorKind, read: Callable[[], Tensor]) -> Tensor:
        """An initialiser: a parameter where it trains, else what it holds. Of a missing file `read` raises."""
        count = torch.Size(kind.shape).numel()
        if not self.uses.trains(name, count, floating=kind.dtype.is_floating_point):
            return read()
        small = len(kind.shape) == 1 and 1 < count <= _MOST_LOOKED_AT
        value = read() if self.with_weights or small else torch.empty(kind.shape, dtype=kind.dtype)
        if small and _is_uniform(value):
            readers = self.uses.readers.get(name, [])
            if is_made(name) and all(node.op_type == "InstanceNormalization" for node, _ in readers):
                return value  # torch's exporters write group normalisation so, with ones and zeros
            layers = [(node, place) for node, place in readers if place not in SETTINGS.get(node.op_type, ())]
            if len(layers) > 1 and all(_is_operand(node, place) for node, place in layers):
                self._merged[name] = False
        return self.add(name, value)

    def of_input(self, node: NodeProto, place: int, value: Any) -> Any:
        """What a node of the file reads: where a layer has its weights it is a parameter, whatever made it."""
        name = node.input[place]
        if place in SETTINGS.get(node.op_type, ()) and name in self._numbers:
            return self._numbers[name]
        if name in self._merged:
            by_name = node.op_type == "Identity" and any(r.op_type != "Identity" for r, _ in self.uses.readers[name])
            if by_name or self._merged[name]:
                self.notes.apart.append(name)
                return self._new(node.output[0] if by_name else name, self._numbers[name].clone())
            self._merged[name] = True
            return value
        at_weight = place in WEIGHTS.get(node.op_type, ()) and isinstance(value, Tensor) and is_known(value)
        if not at_weight or not value.dtype.is_floating_point:
            return value
        maker = self.uses.makers.get(name)
        if node.op_type == "InstanceNormalization" and (maker is not None or is_made(name)) and _is_uniform(value):
            return value
        if maker is not None:
            self.notes.made.append((name, maker.op_type))
        return self.add(name, value)

    def add(self, name: str, value: Tensor) -> Tensor:
        """A parameter by its name in the file."""
        self._numbers[name] = value
        return self._new(name, value)

    def at_random(self, name: str, kind: TensorKind) -> Tensor:
        """Numbers for weights that are not there."""
        self.notes.missing.append(name)
        if any(place in ONES.get(node.op_type, ()) for node, place in self.uses.readers.get(name, [])):
            return torch.ones(kind.shape, dtype=kind.dtype)
        return torch.randn(kind.shape).div(max(torch.Size(kind.shape[1:]).numel(), 1) ** 0.5).to(kind.dtype)

    def target(self, name: str) -> str:
        """The name in the file as one that torch takes, and that is not taken."""
        parts = [_NOT_IN_NAMES.sub("_", part) for part in name.split(".") if part] or ["weight"]
        target = ".".join(f"{part}_" if hasattr(nn.Module, part) or part == "training" else part for part in parts)
        if self._is_taken(target):
            target = target.replace(".", "_")
        number, first = 1, target
        while self._is_taken(target):
            number += 1
            target = f"{first}_{number}"
        self._targets.add(target)
        return target

    def _new(self, name: str, value: Tensor) -> Tensor:
        target = self.target(name)
        parameter = nn.Parameter(value.contiguous())
        put(self.root, target, parameter)
        return self.recorder.attribute(target, parameter)

    def _is_taken(self, target: str) -> bool:
        parts = target.split(".")
        if {".".join(parts[:count]) for count in range(1, len(parts) + 1)} & self._targets:
            return True
        thing: Any = self.root
        for part in parts:
            if not hasattr(thing, part):
                return False
            thing = getattr(thing, part)
        return True


def _is_uniform(value: Tensor) -> bool:
    return bool((value == value[:1]).all())


def _is_operand(node: NodeProto, place: int) -> bool:
    return place in WEIGHTS.get(node.op_type, ()) or node.op_type in ALIKE

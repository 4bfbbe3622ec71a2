"""What a model's step does in eager mode on the meta device, op by op: nothing is computed or allocated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from graphopt.capture.repeated.sequence import Item, Place, Sequence
from graphopt.device.storages import storage_key, tensors_in


def eager_step(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], places: Iterable[tuple[torch.Tensor, Place]]
) -> Sequence:
    """The ops of a forward and of the backward from all of its outputs; gradients are not kept.

    The model's code is told that it is captured, as it then asks for no tensor's data. Where it does so nevertheless,
    it raises.
    """
    with _Recorded() as recorded, mock.patch.object(torch.compiler, "_is_compiling_flag", True):
        outputs = [tensor for tensor in tensors_in(model(*args, **kwargs)) if tensor.requires_grad]
        recorded.backward = True
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if outputs and parameters:
            torch.autograd.grad(outputs, parameters, list(map(torch.empty_like, outputs)), allow_unused=True)
    known = {recorded.values[key]: place for tensor, place in places if (key := storage_key(tensor)) in recorded.values}
    made = {value for item in recorded.items for value in item.outputs}
    residents = tuple(value for value in recorded.values.values() if value not in made)
    return Sequence(tuple(recorded.items), residents, known)


class _Recorded(TorchDispatchMode):
    """Records each op that reaches a device's kernels; values are storages."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.items: list[Item] = []
        self.values: dict[int, int] = {}
        self.backward = False
        # storages are known by where they are, so that none may go before the end
        self._held: list[torch.UntypedStorage] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = (args, kwargs)
        read, made = tensors_in(given), tensors_in(result)
        inputs = tuple(map(self._number, read))
        before = len(self.values)
        numbers = tuple(map(self._number, made))
        outputs = tuple(dict.fromkeys(number for number in numbers if number >= before))
        # results may be in the memory of what was read, or of one another
        places = tuple((*inputs, *outputs).index(number) for number in numbers)
        what = str(func), repr(pytree.tree_map(_described, given)), tuple(map(_described, made)), places
        self.items.append(Item(what, inputs, outputs, self.backward))
        return result

    def _number(self, tensor: torch.Tensor) -> int:
        key = storage_key(tensor)
        if key not in self.values:
            self.values[key] = len(self.values)
            self._held.append(tensor.untyped_storage())
        return self.values[key]


def _described(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        layout = tuple(value.shape), value.stride(), value.storage_offset()
        return f"{value.dtype}{layout}@{value.device}{'*' if value.requires_grad else ''}"
    return type(value).__name__ if isinstance(value, torch.Generator) else str(value)

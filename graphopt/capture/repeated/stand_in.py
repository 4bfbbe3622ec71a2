"""A model with fewer layers, which stands for one with many that are alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from graphopt.capture.repeated.sequence import Place

#: Fewer layers less are not worth it.
_FEWEST_LEFT = 2


@dataclass(frozen=True)
class Left:
    """Layers of a list that a stand-in has not: so many, behind the one that is number `first` of those it has."""

    first: int
    count: int


@dataclass(frozen=True)
class StandIn:
    """A model that shares all but some layers with another one; `left` says which it has not, by the list's name."""

    model: nn.Module
    left: Mapping[str, Left]


def stand_in(model: nn.Module, kept: int) -> StandIn | None:
    """The model with `kept` layers of each run of alike ones in a list; None where it has no such list.

    They are alike where their parameters and buffers are. What they do is to be looked at.
    """
    left: dict[str, Left] = {}
    made = _shortened(model, "", kept, left)
    return StandIn(made, left) if left else None


def places_of(model: nn.Module, lists: Iterable[str]) -> Iterator[tuple[torch.Tensor, Place]]:
    """The parameters and buffers of the layers of these lists of a model."""
    for name in lists:
        for layer, module in enumerate(model.get_submodule(name).children()):
            for of, tensor in (*module.named_parameters(), *module.named_buffers()):
                yield tensor, (name, layer, of)


def place_of(name: str, lists: Iterable[str]) -> Place | None:
    """The place of a parameter or buffer of a model by its name."""
    for each in lists:
        layer, _, of = name.removeprefix(f"{each}.").partition(".")
        if name.startswith(f"{each}.") and layer.isdecimal():
            return each, int(layer), of
    return None


def _shortened(module: nn.Module, name: str, kept: int, left: dict[str, Left]) -> nn.Module:
    """The module itself where nothing in it is a list of alike layers, otherwise a copy that shares all the rest."""
    if isinstance(module, (nn.ModuleList, nn.Sequential)):
        layers = list(module)
        first, count = _longest_run([_spelled(layer) for layer in layers])
        if count >= kept + _FEWEST_LEFT and len(set(map(id, layers))) == len(layers):
            left[name] = Left(first, count - kept)
            stay = [*layers[: first + kept], *layers[first + count :]]
            return _copy(module, {str(number): layer for number, layer in enumerate(stay)})
    children = {
        key: child and _shortened(child, f"{name}.{key}".lstrip("."), kept, left)
        for key, child in module._modules.items()
    }
    is_same = all(children[key] is child for key, child in module._modules.items())
    return module if is_same else _copy(module, children)


def _copy(module: nn.Module, children: dict[str, Any]) -> nn.Module:
    made = type(module).__new__(type(module))
    made.__dict__ = {**vars(module), "_modules": children}
    return made


def _longest_run(kinds: list[list[object]]) -> tuple[int, int]:
    """Where the most of one kind stand one behind the other, and how many; layers without tensors are of none."""
    best = first = count = 0
    for at, kind in enumerate(kinds):
        if at and kind != kinds[first]:
            first = at
        if kind and at + 1 - first > count:
            best, count = first, at + 1 - first
    return best, count


def _spelled(layer: nn.Module) -> list[object]:
    tensors = (*layer.named_parameters(), *layer.named_buffers())
    kinds: list[object] = [(n, t.shape, t.stride(), t.dtype, t.device, t.requires_grad) for n, t in tensors]
    return [*kinds, *(type(module) for module in layer.modules())] if kinds else []

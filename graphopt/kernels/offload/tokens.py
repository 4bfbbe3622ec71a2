"""Tokens of values that are elsewhere: a value's place goes with the last tensor that holds its token."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

Place = TypeVar("Place")


@dataclass(eq=False)
class PlacesByToken(Generic[Place]):
    """Places by the number in their token; `goes` is told of a place whose token is gone, on whichever thread."""

    goes: Callable[[Place], None]
    _places: dict[int, Place] = field(default_factory=dict)
    _next: int = 0

    def new(self, place: Place) -> Tensor:
        """A token: one number, in memory that no allocator of torch's counts."""
        self._next += 1
        self._places[self._next] = place
        memory = np.array([self._next], dtype=np.int64)
        # the tensor holds the array as long as anybody holds the tensor's storage
        weakref.finalize(memory, _go, weakref.ref(self), self._next).atexit = False
        return torch.from_numpy(memory)

    def place_of(self, token: Tensor) -> Place:
        """What a token stands for."""
        return self._places[int(token)]

    def __len__(self) -> int:
        return len(self._places)

    def forget(self, number: int) -> None:
        """This token is gone."""
        self.goes(self._places.pop(number))


def _go(tokens: weakref.ref[PlacesByToken[Place]], number: int) -> None:
    if (there := tokens()) is not None:
        there.forget(number)

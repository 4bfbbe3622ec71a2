"""How a step's parameters are shared out over ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch._guards import detect_fake_mode

from graphopt.base.parts import part_of
from graphopt.compression.rows import ByRows


@dataclass(frozen=True)
class RowsOver:
    """Rows of dimension 0 over the ranks of a group; `seconds` is how long a message of so many bytes in all takes.

    `group` is a label (`graphopt.kernels.sharding.transport.label_of`), as is `copies`, of the ranks that hold the same
    rows; "" where no other does.
    """

    group: str
    world: int
    seconds: Callable[[int], float]
    copies: str = ""
    #: Whether parameters are rows too, and not whole.
    gathers: bool = True
    #: Whether gradients are: else they are summed whole, as without rows.
    scatters: bool = True

    def rows_of(self, whole: torch.Tensor) -> torch.Tensor:
        """The (fake) rows of the first rank, of which no other has more: all ranks plan alike."""
        mode = detect_fake_mode([whole])
        assert mode is not None
        with mode:
            return whole.new_empty((part_of(len(whole), 0, self.world).stop, *whole.shape[1:]))


@dataclass(frozen=True)
class CompressedRows:
    """How gradients travel compressed: the method of each primal by its position, None as it is.

    Only float32 ones have a method. With `scaled` there is a loss scale, from which what is kept back is free.
    """

    methods: Mapping[int, ByRows | None]
    scaled: bool
    #: How many ranks hold the same rows.
    copies: int = 1

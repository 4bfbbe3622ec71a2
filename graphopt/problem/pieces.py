"""In how many pieces a graph's largest values are made, never all of one at once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pieces:
    """`count` pieces, 1 where values are whole. With `at_once` a piece's gradients are made together with its loss."""

    count: int = 1
    at_once: bool = False

    def __str__(self) -> str:
        if self.count == 1:
            return "whole"
        return f"{self.count} pieces{', gradients with the loss' if self.at_once else ''}"


#: The graph as it was captured.
WHOLE = Pieces()

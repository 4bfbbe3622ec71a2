"""A linear programme as arrays."""

from __future__ import annotations

from dataclasses import dataclass

from graphopt.planners.native.arrays import Floats, Ints


@dataclass(frozen=True, eq=False)
class LinearProgramme:
    """The least `costs x` with `least <= x <= 1` and `A x <= limits`; entries of `A` by row, column and factor."""

    costs: Floats
    least: Floats
    row: Ints
    column: Ints
    factor: Floats
    limits: Floats

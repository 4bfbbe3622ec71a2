"""FoundScratch: an operator that took more memory in a training step than its price says."""

from __future__ import annotations

from dataclasses import dataclass

from graphopt.base.units import format_bytes


@dataclass(frozen=True)
class FoundScratch:
    """What it took at most beside its inputs, and what was planned: scratch, and its outputs where these are more.

    `source` is the user's line ("file:line"), `module` the path of the module that it is of; each "" where unknown.
    """

    name: str
    module: str
    source: str
    planned_bytes: int
    taken_bytes: int

    @property
    def more_bytes(self) -> int:
        """What it took beyond what was planned."""
        return self.taken_bytes - self.planned_bytes

    def __str__(self) -> str:
        module, source = f" in {self.module}" if self.module else "", f" at {self.source}" if self.source else ""
        return f"{self.name}{module}{source}, {format_bytes(self.taken_bytes)} (planned {self.planned_bytes:,} bytes)"

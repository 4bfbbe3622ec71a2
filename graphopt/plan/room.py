"""Room: the bytes that a process may use, and what is left of them for its graphs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Room:
    """What a process may use, and what of it is taken before its graphs run, by kind."""

    budget_bytes: int
    resident_bytes: Mapping[str, int]

    @property
    def own_bytes(self) -> int:
        """What is left for the graphs; below 0 where nothing is."""
        return self.budget_bytes - sum(self.resident_bytes.values())

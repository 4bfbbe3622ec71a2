"""What one round of annealing is asked for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AnnealRound:
    """The first `moves` of a round of `length` moves inside `budget_bytes`, at random by `seed`.

    Only what is faster than `best_seconds` is of use; it ends early after `seconds_left` on the clock.
    """

    budget_bytes: int
    seed: int
    length: int
    moves: int
    best_seconds: float
    seconds_left: float

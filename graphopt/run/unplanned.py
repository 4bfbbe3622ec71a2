"""Training calls that run without a plan, in a model that has one: told of, once for each cause."""

from __future__ import annotations

import warnings


class Unplanned:
    """Tells of calls of which nothing could be captured."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def ran(self, why: str) -> None:
        """Such a call has run, as it would in eager."""
        if why not in self._told:
            self._told.add(why)
            warnings.warn(
                f"graphopt: a training call ran without a plan, as {why}. Its bytes are measured, and told of where "
                "they are over the budget",
                stacklevel=2,
            )

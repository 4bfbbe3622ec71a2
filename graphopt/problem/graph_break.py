"""GraphBreak: a place where a model could not be captured further."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GraphBreak:
    """Why, and the user's line ("file:line in function"); `given_up` is the function that runs as it is because of it.

    "" where what is behind the break is captured again, as another graph.
    """

    reason: str
    source: str
    given_up: str = ""

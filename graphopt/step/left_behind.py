"""What training steps allocate and leave behind, beyond all that is known by name."""

from __future__ import annotations


class LeftBehind:
    """Told of what is allocated when a step begins and when it ends, and how much of that is known by name.

    What others allocate and free between steps is not the steps': what is left of them is at most what they left
    and at most what there is more of than before the first.
    """

    def __init__(self) -> None:
        self._left_bytes = 0
        self._first_unknown_bytes: int | None = None
        self._unknown_bytes = 0

    def begins(self, live_bytes: int, known_bytes: int) -> int:
        """Bytes that earlier steps left, and that are there still."""
        self._unknown_bytes = live_bytes - known_bytes
        if self._first_unknown_bytes is None:
            self._first_unknown_bytes = self._unknown_bytes
        self._left_bytes = max(min(self._left_bytes, self._unknown_bytes - self._first_unknown_bytes), 0)
        return self._left_bytes

    def ends(self, live_bytes: int, known_bytes: int) -> None:
        """The step has run."""
        self._left_bytes = max(self._left_bytes + live_bytes - known_bytes - self._unknown_bytes, 0)

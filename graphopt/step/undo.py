"""A step that is refused leaves the model and its optimizer as they were, so that another one can be asked for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress

from graphopt.base.errors import GraphoptError, RankError


def where_refused(undo: ExitStack, what: Callable[[], object]) -> None:
    """Do `what`, which may be a collective call, where the stack is left by an error that all ranks raise alike.

    Where it fails, as another rank is gone after all, the error that was there first is the one to show.
    """

    def leave(_kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, GraphoptError) and not isinstance(error, RankError):
            with suppress(Exception):
                what()

    undo.push(leave)

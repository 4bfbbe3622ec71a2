"""Work that Ctrl-C may not cut in two."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import FrameType
from typing import Any


@dataclass
class _Held:
    """An interrupt goes to its handler at once, or, while `is_waiting`, when somebody asks for it."""

    handler: Callable[[int, FrameType | None], Any]
    is_waiting: bool = False
    came: list[tuple[int, FrameType | None]] = field(default_factory=list)

    def comes(self, number: int, frame: FrameType | None) -> None:
        if self.is_waiting:
            self.came.append((number, frame))
        else:
            self.handler(number, frame)


_around: ContextVar[_Held | None] = ContextVar("graphopt_interrupts", default=None)


@contextmanager
def whole_once_begun() -> Iterator[None]:
    """Inside, an interrupt (SIGINT) waits until the end from the first `uninterrupted` work on."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield  # no other thread is ever interrupted
        return
    held = _Held(handler)
    signal.signal(signal.SIGINT, held.comes)
    before = _around.set(held)
    try:
        yield
    finally:
        _around.reset(before)
        signal.signal(signal.SIGINT, handler)
        if held.came:
            handler(*held.came[0])


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Inside, and in what this is a part of, an interrupt waits until the end."""
    around = _around.get()
    if around is not None:
        around.is_waiting = True
        yield
        return
    with whole_once_begun(), uninterrupted():
        yield

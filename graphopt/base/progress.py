"""What long work is doing, on a line of a terminal, and where its seconds go: phases, one inside of the other."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

#: Shows another text on a line.
Tell = Callable[[str], None]


@dataclass
class Phases:
    """The phases of some work: `seconds` of each by name, without those of phases inside of it, in order."""

    tell: Tell
    seconds: dict[str, float] = field(default_factory=dict)
    #: Those that are running, the innermost last.
    running: list[str] = field(default_factory=list)
    since: float = 0.0

    def turns(self) -> None:
        """What ran until now gets its seconds."""
        now = time.perf_counter()
        if self.running:
            self.seconds[self.running[-1]] = self.seconds.get(self.running[-1], 0.0) + now - self.since
        self.since = now


_watching: ContextVar[Phases | None] = ContextVar("graphopt_phases", default=None)


@contextmanager
def watched_phases(tell: Tell) -> Iterator[Phases]:
    """Count the seconds of the phases inside, and tell what each is as it begins."""
    phases = Phases(tell)
    before = _watching.set(phases)
    try:
        yield phases
    finally:
        _watching.reset(before)


@contextmanager
def phase(name: str, *, shown_alone: bool = False) -> Iterator[Tell]:
    """Work that is counted and told of where somebody watches; what is yielded tells how far it is.

    Where nobody does, it is shown by itself if it is `shown_alone`.
    """
    phases = _watching.get()
    if phases is None:
        if shown_alone:
            with progress(name) as tell:
                yield lambda detail: tell(f"{name}: {detail}")
        else:
            yield lambda _: None
        return
    phases.turns()
    phases.running.append(name)
    phases.tell(name)
    try:
        yield lambda detail: phases.tell(f"{name}: {detail}")
    finally:
        phases.turns()
        phases.running.pop()
        if phases.running:
            phases.tell(phases.running[-1])


@contextmanager
def progress(text: str, console: Console | None = None, delay_seconds: float = 1.0) -> Iterator[Tell]:
    """Show `text`, a spinner and the time once the work has taken `delay_seconds`; nothing where no terminal is.

    What it yields shows another text.
    """
    if console is None and not (sys.stderr is not None and sys.stderr.isatty()):
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    # What the user's own file prints goes where it would go without us.
    line = Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False)
    task = line.add_task(text, total=None)
    timer = threading.Timer(delay_seconds, line.start)
    timer.daemon = True
    timer.start()
    try:
        yield lambda text: line.update(task, description=text)
    finally:
        timer.cancel()
        timer.join()
        if line.live.is_started:
            line.stop()


def seconds_by_phase(seconds: dict[str, float]) -> str:
    """`{"capturing": 1.23, "planning": 4.0}` -> `"5.2 s: capturing 1.2, planning 4.0"`."""
    each = ", ".join(f"{name} {spent:.1f}" for name, spent in seconds.items())
    return f"{sum(seconds.values()):.1f} s: {each}"

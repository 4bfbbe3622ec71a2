"""A line on standard error that says that work goes on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


@contextmanager
def progress(text: str, console: Console | None = None, delay_seconds: float = 1.0) -> Iterator[None]:
    """Show `text`, a spinner and the time once the work has taken `delay_seconds`; nothing where no terminal is."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    # What the user's own file prints goes where it would go without us.
    line = Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False)
    line.add_task(text, total=None)
    timer = threading.Timer(delay_seconds, line.start)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        if line.live.is_started:
            line.stop()

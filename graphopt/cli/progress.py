"""A line on standard error that says that work goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


@contextmanager
def progress(text: str, console: Console | None = None, delay_seconds: float = 1.0) -> Iterator[Callable[[str], None]]:
    """Show `text`, a spinner and the time once the work has taken `delay_seconds`; nothing where no terminal is.

    What it yields shows another text.
    """
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

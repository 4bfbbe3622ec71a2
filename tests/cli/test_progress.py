"""The line that says that work goes on: only on a terminal, only when it takes long, gone afterwards."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from graphopt.cli.progress import progress


def shown(terminal: bool, delay_seconds: float, work_seconds: float) -> str:
    out = io.StringIO()
    with progress("planning", Console(file=out, force_terminal=terminal, width=80), delay_seconds):
        time.sleep(work_seconds)
    return out.getvalue()


def test_long_work_is_shown_and_cleared() -> None:
    text = shown(terminal=True, delay_seconds=0.01, work_seconds=0.3)
    assert "planning" in text and "0:00:0" in text
    assert text.rstrip("\n").endswith("\x1b[2K")


def test_the_text_may_change() -> None:
    out = io.StringIO()
    with progress("planning", Console(file=out, force_terminal=True, width=80), 0.01) as tell:
        time.sleep(0.1)
        tell("planning [the second]")
        time.sleep(0.2)
    assert "planning [the second]" in out.getvalue()
    with progress("planning", Console(file=out)) as tell:
        tell("nothing")


def test_short_work_and_no_terminal_show_nothing() -> None:
    assert shown(terminal=True, delay_seconds=60.0, work_seconds=0.0) == ""
    assert shown(terminal=False, delay_seconds=0.0, work_seconds=0.05) == ""


def test_an_error_passes_through() -> None:
    out = io.StringIO()
    with pytest.raises(KeyError), progress("planning", Console(file=out, force_terminal=True), 0.0):
        time.sleep(0.05)
        raise KeyError("which")

"""The line that says that work goes on: only on a terminal, only when it takes long, gone afterwards."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from graphopt.base.progress import phase, progress, seconds_by_phase, watched_phases


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


def test_seconds_count_for_the_innermost_phase() -> None:
    told: list[str] = []
    with watched_phases(told.append) as phases:
        with phase("capturing"):
            time.sleep(0.02)
            with phase("profiling", shown_alone=True) as tell:
                time.sleep(0.06)
                tell("3 of 4")
            with pytest.raises(KeyError), phase("planning"):
                raise KeyError
            time.sleep(0.02)
        with phase("capturing"):
            time.sleep(0.02)
    assert list(phases.seconds) == ["capturing", "profiling", "planning"]
    assert phases.seconds["profiling"] >= 0.06 <= phases.seconds["capturing"]
    assert phases.seconds["planning"] < 0.06
    assert told[:4] == ["capturing", "profiling", "profiling: 3 of 4", "capturing"]
    assert not phases.running


def test_a_phase_that_nobody_watches_costs_and_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    for alone in (False, True):
        with phase("planning", shown_alone=alone) as tell:
            tell("1 of 2")
    assert capsys.readouterr() == ("", "")  # no terminal


def test_where_seconds_go_is_one_line() -> None:
    assert seconds_by_phase({"capturing": 1.23, "planning": 4.0}) == "5.2 s: capturing 1.2, planning 4.0"


def test_compiling_is_shown_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a phase shows where nobody watches, with the terminal that a test has not."""
    out = io.StringIO()
    monkeypatch.setattr("sys.stderr", out)
    monkeypatch.setattr(out, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with phase("compiling C++", shown_alone=True) as tell:
        tell("2 of 3")
        time.sleep(1.3)
    assert "compiling C++: 2 of 3" in out.getvalue() and out.getvalue().rstrip("\n").endswith("\x1b[2K")

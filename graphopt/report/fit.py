"""What of a batch fits a budget, and the table of it."""

from __future__ import annotations

from dataclasses import dataclass

from rich.text import Text

from graphopt.base.units import format_bytes
from graphopt.report.figures import seconds_text, signed_percent
from graphopt.report.text import plain, render, table


@dataclass(frozen=True)
class Way:
    """One way to cut the batch; peak, extra time over eager (a fraction) and seconds are None where it does not fit.

    `minimum_bytes` is the least budget that would do for it.
    """

    micro_batches: int
    micro_rows: int
    minimum_bytes: int
    peak_bytes: int | None
    overhead: float | None
    seconds_a_row: float | None


@dataclass(frozen=True)
class Fit:
    """What of a batch of `rows` fits a budget. All bytes are in the budget's own measure.

    `chosen` is what accumulate="auto" takes, None where nothing fits; the largest batch is that of a step
    without accumulation, the largest micro-batch one of the given batch. 0 where not even one row fits.
    """

    model: str
    device: str
    optimizer: str
    rows: int
    budget_bytes: int
    ways: tuple[Way, ...]
    chosen: Way | None
    largest_batch: int
    largest_micro_batch: int

    def __str__(self) -> str:
        return fit_text(self)


def fit_text(fit: Fit, width: int = 110, color: bool = False) -> str:
    """The ways to cut the batch as a table, and the largest sizes."""
    budget = format_bytes(fit.budget_bytes)
    numbers = ("micro-batches", "rows each", "predicted peak", "smallest budget", "extra time", "time a row")
    made = table(*numbers, "", right=numbers)
    for way in fit.ways:
        cells = [str(way.micro_batches), str(way.micro_rows), "does not fit", format_bytes(way.minimum_bytes), "", ""]
        if way.peak_bytes is not None and way.overhead is not None and way.seconds_a_row is not None:
            cells[2], cells[4:] = (
                format_bytes(way.peak_bytes),
                [
                    signed_percent(way.overhead),
                    seconds_text(way.seconds_a_row),
                ],
            )
        chosen = way == fit.chosen
        made.add_row(*cells, "◆ chosen" if chosen else "", style="bold" if chosen else "")
    head = (
        f"{plain(fit.model)} with {plain(fit.optimizer)} on {plain(fit.device)}, a batch of {fit.rows} rows in {budget}"
    )
    state = Text("FITS" if fit.chosen else "DOES NOT FIT", style="bold green" if fit.chosen else "bold red")
    least = min(way.minimum_bytes for way in fit.ways)
    notes = [
        f"largest batch without accumulation: {_rows(fit.largest_batch)}",
        f"largest micro-batch of this batch: {_rows(fit.largest_micro_batch)}",
        f"smallest budget of these: {format_bytes(least)}",
    ]
    return render([Text(head, style="bold"), state, made, *map(Text, notes)], width, color)


def _rows(count: int) -> str:
    return "not even one row" if count == 0 else "1 row" if count == 1 else f"{count:,} rows"

"""Numbers of bytes as people write them."""

from __future__ import annotations

import re
from typing import TypeVar

from graphopt.base.errors import BudgetParseError

Number = TypeVar("Number", int, float)

#: Bytes as `parse_bytes` reads them.
Budget = int | float | str
#: A budget that nothing exceeds, and the largest that can be named.
UNLIMITED_BYTES, MOST_BYTES = 1 << 62, 2**63 - 1
TOO_MANY = "a number of bytes is at most 2**63 - 1"

_UNITS = {
    "": 1,
    "B": 1,
    **{f"{prefix}B": 1000**power for power, prefix in enumerate("KMGTP", start=1)},
    **{f"{prefix}IB": 1024**power for power, prefix in enumerate("KMGTP", start=1)},
}
_PATTERN = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*([A-Za-z%]*)\s*")


def parse_bytes(text: Budget, device_total_bytes: int | None = None) -> int:
    """Read `"8GiB"` (2**30), `"8GB"` (10**9), `"80%"` (of the device) or a bare number of bytes.

    Raises BudgetParseError for a negative or zero number, one above 2**63 - 1, an unknown unit, a unit with two
    readings (`"8G"`), and a percentage where the device's memory is not known.
    """
    if isinstance(text, bool) or not isinstance(text, (int, float, str)):
        raise BudgetParseError(f"a number of bytes was expected, not {text!r}")
    if isinstance(text, int):
        text = _bounded(text)
    match = _PATTERN.fullmatch(str(text) if not isinstance(text, float) else f"{text:f}")
    if match is None:
        raise BudgetParseError(
            f"cannot read {text!r} as a number of bytes; write for example '8GiB', '8GB', '80%' or 8589934592"
        )
    number, unit = _bounded(float(match[1])), match[2]
    if unit == "%":
        return _positive(text, _share(text, number, device_total_bytes))
    if unit.upper() in {"K", "M", "G", "T", "P"}:
        letter = unit.upper()
        raise BudgetParseError(
            f"{text!r} has two readings: write {match[1]}{letter}iB for 1024-based bytes or "
            f"{match[1]}{letter}B for 1000-based bytes"
        )
    if unit.upper() not in _UNITS:
        raise BudgetParseError(f"unknown unit {unit!r} in {text!r}; use B, KB, KiB, MB, MiB, GB, GiB, TB, TiB or %")
    exact = int(match[1]) if match[1].isdigit() else number
    return _positive(text, int(exact * _UNITS[unit.upper()]))


def _share(text: object, percent: float, device_total_bytes: int | None) -> int:
    if device_total_bytes is None:
        raise BudgetParseError(f"{text!r} is a share of the device's memory, which is not known here; name bytes")
    return int(device_total_bytes * percent / 100)


def _positive(text: object, number_bytes: int) -> int:
    if number_bytes <= 0:
        raise BudgetParseError(f"a budget must be more than zero bytes, got {text!r}")
    if number_bytes > MOST_BYTES:
        raise BudgetParseError(TOO_MANY)
    return number_bytes


def _bounded(number: Number) -> Number:
    """As it is, if it may still be a number of bytes: a float may be rounded up from the largest."""
    if abs(number) > MOST_BYTES + 1:
        raise BudgetParseError(TOO_MANY)
    return number


def format_bytes(number_bytes: float) -> str:
    """`1536` -> `"1.5 KiB"`: three significant digits or so, 1024-based."""
    value = float(number_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"

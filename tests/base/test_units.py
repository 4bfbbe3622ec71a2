"""Numbers of bytes: every reading, and every one that is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.base.errors import BudgetParseError
from graphopt.base.units import format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8GiB", 8 * 2**30),
        ("8GB", 8 * 10**9),
        (" 1.5 MiB ", 3 * 2**19),
        (".5kib", 512),
        ("1 tb", 10**12),
        ("512B", 512),
        ("512", 512),
        (512, 512),
        (1e9, 10**9),
        (2**62 + 1, 2**62 + 1),
        ("9007199254740993", 2**53 + 1),
    ],
)
def test_readings(text: str | float, expected: int) -> None:
    assert parse_bytes(text) == expected


def test_two_readings_are_refused_and_both_named() -> None:
    for text in ("8G", "8g"):
        with pytest.raises(BudgetParseError, match=r"8GiB.*8GB"):
            parse_bytes(text)


@pytest.mark.parametrize(
    "text",
    [2**63, "9223372036854775808", "9000PiB", "9" * 5000, f"{'9' * 5000}GiB", 10**5000, -(10**5000), 1e300],
    ids=range(8),
)
def test_more_than_a_number_of_bytes_can_be_is_refused(text: str | float) -> None:
    with pytest.raises(BudgetParseError, match=r"at most 2\*\*63 - 1"):
        parse_bytes(text)


@pytest.mark.parametrize("text", [0, "0", "0GiB", "0.4", 0.0, "0%"])
def test_zero_is_refused(text: str | float) -> None:
    with pytest.raises(BudgetParseError, match="more than zero"):
        parse_bytes(text, 100)


@pytest.mark.parametrize("text", [-1, "-1", "-8GiB", -0.5, "", "GiB", "8 GiB GiB", "1e9", "8,5GB", "1_000", "٣GiB"])
def test_what_is_no_number_is_refused(text: str | float) -> None:
    with pytest.raises(BudgetParseError):
        parse_bytes(text)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, None, [8]])
def test_other_types_are_refused(value: object) -> None:
    with pytest.raises(BudgetParseError):
        parse_bytes(value)  # type: ignore[arg-type]


def test_an_unknown_unit_is_named() -> None:
    with pytest.raises(BudgetParseError, match="unknown unit 'Gibit'"):
        parse_bytes("8Gibit")


def test_a_share_needs_the_devices_memory() -> None:
    assert parse_bytes("80%", 1000) == 800
    with pytest.raises(BudgetParseError, match="share of the device"):
        parse_bytes("80%")


@given(st.integers(1, 2**62))
def test_a_bare_number_is_itself(number: int) -> None:
    assert parse_bytes(number) == parse_bytes(str(number)) == number


def test_formatting() -> None:
    assert [format_bytes(n) for n in (0, 1023, 1536, 2**20, 3 * 2**30, 2**41)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "1.0 MiB",
        "3.0 GiB",
        "2.0 TiB",
    ]

"""Of tests with many cases some are fast; every test has its place among the fast ones or the slow ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.fast(2)
@pytest.mark.parametrize("number", range(5))
def test_one_of_five(number: int) -> None:
    assert number in range(5)


@pytest.mark.fast(7)
@pytest.mark.parametrize("number", range(2))
def test_one_of_two(number: int) -> None:
    assert number in range(2)


def collected(marks: str) -> list[str]:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", marks, Path(__file__)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    return [line.split("::")[1] for line in done.stdout.splitlines() if "test_one_of" in line]


def test_cases_are_spread_evenly() -> None:
    of_two = [f"test_one_of_two[{number}]" for number in range(2)]
    assert collected("not slow") == ["test_one_of_five[0]", "test_one_of_five[2]", *of_two]
    assert collected("slow") == [f"test_one_of_five[{number}]" for number in (1, 3, 4)]

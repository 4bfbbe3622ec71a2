"""Tests of a model's calls measure the process's memory: what earlier tests left must not go in the middle of one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from graphopt.device.measure import collected_garbage


@pytest.fixture(autouse=True)
def garbage_is_gone() -> Iterator[None]:
    """Collected before each test, and not in it."""
    with collected_garbage():
        yield

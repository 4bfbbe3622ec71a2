"""Every test on a GPU starts with nothing of the one before on the device, and the same kernels every time."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import pytest

from tests.support.deterministic import deterministic
from tests.support.on_gpu import forget, note


@pytest.fixture(autouse=True)
def clean_device() -> Iterator[None]:
    deterministic()
    forget()
    yield
    forget()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """What failed is told at once: time on a GPU may end before the summary comes."""
    report = yield
    if report.failed:
        note(failed=item.name, why=str(call.excinfo.value)[:600] if call.excinfo else "")
    return report

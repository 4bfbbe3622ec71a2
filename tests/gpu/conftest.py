"""Every test on a GPU starts with nothing of the one before on the device, and the same kernels every time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from on_gpu import deterministic, forget


@pytest.fixture(autouse=True)
def clean_device() -> Iterator[None]:
    deterministic()
    forget()
    yield
    forget()

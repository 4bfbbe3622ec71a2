"""Models that torch's exporter writes, each once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from tests.support.onnx_models import Exported, export


@pytest.fixture(scope="session")
def exported() -> Callable[[str], Exported]:
    """One of `MODELS`, with a batch that has a name, N."""

    @cache
    def get(name: str) -> Exported:
        return export(name, batch="N")

    return get

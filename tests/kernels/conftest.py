"""Every test of the kernels runs with each kind of them."""

from __future__ import annotations

import pytest

from tests.support.tensors import KINDS


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """What `graphopt.kernels.use` takes."""
    return str(request.param)

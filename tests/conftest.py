"""Settings of all tests."""

from __future__ import annotations

import functools
import gc
import sys

import pytest
from hypothesis import settings

# examples take longer on a machine with other work; that is no fault
settings.register_profile("graphopt", deadline=None)
settings.load_profile("graphopt")

# torch, sympy and transformers are a million objects, which a collection of the oldest ones walks through:
# at Python's thresholds a sixth of the time of a test that captures a large model
gc.set_threshold(20_000, 20, 20)


@pytest.fixture(autouse=True)
def passes_keep_their_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is captured in a test is captured under the rules for passes."""
    if "graphopt.capture.capture_graph" in sys.modules:
        from graphopt.capture import capture_graph
        from graphopt.passes.joint import contract
        from graphopt.passes.run_passes import run_passes

        monkeypatch.setattr(capture_graph, "run_passes", functools.partial(run_passes, rules=contract.RULES))
    if "graphopt.step.train_step" in sys.modules:
        from graphopt.passes.run_passes import run_passes
        from graphopt.passes.window import contract as of_window
        from graphopt.step import train_step

        monkeypatch.setattr(train_step, "run_passes", functools.partial(run_passes, rules=of_window.RULES))

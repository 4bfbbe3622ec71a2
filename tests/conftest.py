"""Settings of all tests."""

from __future__ import annotations

import functools
import gc
import itertools
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from graphopt.planners.curves.effort import Effort
    from graphopt.planners.study.study import Study

# examples take longer on a machine with other work; that is no fault
settings.register_profile("graphopt", deadline=None)
settings.load_profile("graphopt")

# torch, sympy and transformers are a million objects, which a collection of the oldest ones walks through:
# at Python's thresholds a sixth of the time of a test that captures a large model
gc.set_threshold(20_000, 20, 20)


#: Tests after which all that is there is taken for what stays. Dynamo keeps what it captured, and each measured peak
#: collects first: behind a thousand tests that took half a second, and four fifths of the step matrix.
TESTS_BETWEEN_FREEZES = 25
_tests = itertools.count(1)


def pytest_runtest_logfinish() -> None:
    """A test has ended."""
    if next(_tests) % TESTS_BETWEEN_FREEZES == 0:
        gc.collect()
        gc.freeze()


@pytest.hookimpl(tryfirst=True)  # before those are left out that are slow
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of tests with many cases some are fast, spread evenly over them."""
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("fast"):
            cases.setdefault(item.nodeid.split("[")[0], []).append(item)
    for every in cases.values():
        count = every[0].get_closest_marker("fast").args[0]  # type: ignore[union-attr]
        fast = {number * len(every) // count for number in range(count)}
        for number, item in enumerate(every):
            if number not in fast and len(every) > count:
                item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """All is imported."""
    if "torch" in sys.modules:
        from tests.support.settled import settle, silence_trace

        silence_trace()
        settle()


@pytest.fixture(autouse=True, scope="session")
def roofline_is_one_machines() -> Iterator[None]:
    """Plans by roofline's prices are the same wherever the tests run: a machine of this speed, whatever is here."""
    if "torch" not in sys.modules:
        yield
        return
    from tests.support.machine import speed_of

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("graphopt.cost_models.roofline.device_speed", speed_of)
        yield


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


@pytest.fixture(autouse=True)
def curves_are_retouched_briefly(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where plans are not what is tested: a third of the time in which a small model is planned makes them last better.

    Two budgets are tried where 30 may be, so that schedules of every kind still come.
    """
    about_plans = {"planners", "benchmarks"} & set(request.path.relative_to(Path(__file__).parent).parts)
    retouch = sys.modules.get("graphopt.planners.moves.retouch")
    if about_plans or retouch is None:
        return
    effort_for = retouch.effort_for

    def brief(study: Study) -> Effort:
        effort = effort_for(study)
        return replace(effort, retouches=min(effort.retouches, 2))

    monkeypatch.setattr(retouch, "effort_for", brief)

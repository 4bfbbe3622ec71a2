"""Plans in PyTorch's own log of compilations (`TORCH_TRACE`), which tlparse shows."""

from __future__ import annotations

import json
from collections.abc import Callable

from torch._logging._internal import trace_structured

from graphopt.base.records import encode
from graphopt.report.data import Report
from graphopt.report.text import render_text
from graphopt.report.traces.chrome import trace_json
from graphopt.report.traces.timeline import Timeline


def log_to_torch_trace(report: Callable[[], Report], timeline: Callable[[], Timeline]) -> None:
    """Add a plan to the log, as artifacts of what is being compiled; where no log is kept nothing is made."""
    _artifact("graphopt_report", "string", lambda: render_text(report()))
    _artifact("graphopt_plan", "json", lambda: json.dumps(encode(report().plan), indent=1))
    _artifact("graphopt_timeline", "json", lambda: trace_json(timeline()))


def _artifact(name: str, encoding: str, payload: Callable[[], str]) -> None:
    # what is planned for several graphs at once is planned behind their compilations
    trace_structured(
        "artifact", lambda: {"name": name, "encoding": encoding}, payload_fn=payload, expect_trace_id=False
    )

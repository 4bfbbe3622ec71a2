"""Timeline -> trace of events in JSON, which Perfetto and chrome://tracing read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from graphopt.base.units import format_bytes
from graphopt.report.traces.timeline import OpRun, Timeline

_PROCESS, _PHASES, _OPERATORS, _TRANSFERS = 1, 1, 2, 3
#: The names that chrome://tracing has for colours; Perfetto colours by name.
_COLORS = {"forward": "thread_state_running", "backward": "thread_state_iowait", "update": "thread_state_runnable"}
_RECOMPUTED = "terrible"


def trace_json(timeline: Timeline) -> str:
    """The trace as text: phases, operators and transfers on a lane each, and a counter of bytes.

    Microseconds; events are in the order in which they begin. A recomputation says so in its name and its category.
    """
    events = [*_phases(timeline), *_operators(timeline), *_transfers(timeline), *_counters(timeline)]
    events.sort(key=lambda event: event["ts"])
    about = {
        "made by": "graphopt: a prediction, not a measurement",
        "peak_bytes": timeline.peak_bytes,
        "budget_bytes": timeline.budget_bytes,
        "resident_bytes": dict(timeline.resident_bytes),
    }
    data = {"traceEvents": [*_names(timeline), *events], "displayTimeUnit": "ms", "otherData": about}
    return json.dumps(data, allow_nan=False) + "\n"


def _names(timeline: Timeline) -> Iterator[dict[str, Any]]:
    process = f"{timeline.model} on {timeline.device}, as predicted"
    yield _event("process_name", "M", 0, 0.0, args={"name": process})
    lanes = {_PHASES: "phases", _OPERATORS: "operators"}
    if timeline.moved:
        lanes[_TRANSFERS] = "transfers"
    for lane, name in lanes.items():
        yield _event("thread_name", "M", lane, 0.0, args={"name": name})
        yield _event("thread_sort_index", "M", lane, 0.0, args={"sort_index": lane})


def _phases(timeline: Timeline) -> Iterator[dict[str, Any]]:
    for (graph, phase), group in groupby(timeline.runs, key=lambda run: (run.graph, run.phase)):
        runs = list(group)
        end_seconds = runs[-1].begin_seconds + runs[-1].seconds
        name = f"{phase} of {graph}" if graph else phase
        args = {"peak_bytes": max(run.live_bytes for run in runs)}
        yield _slice(name, phase, _PHASES, runs[0].begin_seconds, end_seconds, args) | {"cname": _COLORS[phase]}


def _operators(timeline: Timeline) -> Iterator[dict[str, Any]]:
    for number, run in enumerate(timeline.runs):
        if run.how == "moved":  # it is on the lane of transfers, or does nothing
            continue
        again = run.how == "recomputed"
        name, category = (f"{run.name} (recomputed)", f"{run.phase},recomputed") if again else (run.name, run.phase)
        found = _slice(
            name, category, _OPERATORS, run.begin_seconds, run.begin_seconds + run.seconds, _about(number, run)
        )
        yield found | {"cname": _RECOMPUTED if again else _COLORS[run.phase]}


def _about(number: int, run: OpRun) -> dict[str, Any]:
    known = {"graph": run.graph, "module": run.module_path, "source": run.source}
    return {"step": number, **{key: text for key, text in known.items() if text}, "live_bytes": run.live_bytes}


def _transfers(timeline: Timeline) -> Iterator[dict[str, Any]]:
    for moved in timeline.moved:
        name = f"{'fetch' if moved.is_fetch else 'write'} {moved.name} ({format_bytes(moved.bytes)})"
        category = "fetch" if moved.is_fetch else "write"
        end_seconds = moved.begin_seconds + moved.seconds
        yield _slice(name, category, _TRANSFERS, moved.begin_seconds, end_seconds, {"bytes": moved.bytes})


def _counters(timeline: Timeline) -> Iterator[dict[str, Any]]:
    """Bytes on the device as each run begins; behind the last, what is resident."""
    for run in timeline.runs:
        yield _counter(run.begin_seconds, run.live_bytes)
    yield _counter(timeline.seconds, sum(timeline.resident_bytes.values()))


def _counter(seconds: float, size_bytes: int) -> dict[str, Any]:
    return _event("bytes on the device", "C", 0, seconds, args={"bytes": size_bytes})


def _slice(
    name: str, category: str, lane: int, begin_seconds: float, end_seconds: float, args: dict[str, Any]
) -> dict[str, Any]:
    begin, end = _microseconds(begin_seconds), _microseconds(end_seconds)
    return _event(name, "X", lane, begin_seconds, args=args) | {"cat": category, "dur": round(max(end - begin, 0.0), 3)}


def _event(name: str, kind: str, lane: int, seconds: float, args: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "ph": kind, "pid": _PROCESS, "tid": lane, "ts": _microseconds(seconds), "args": args}


def _microseconds(seconds: float) -> float:
    """To the nanosecond, which is what Perfetto keeps."""
    return round(seconds * 1e6, 3)

"""Timelines of real plans: what they hold at each run is what the simulator says, in every file made of them."""

from __future__ import annotations

import io
import json
import pickle
import pickletools
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.cuda import _memory_viz

import graphopt
from graphopt.api.optimize import plan_model
from graphopt.plan.offload import where
from graphopt.problem.plan import Plan
from graphopt.report.traces.chrome import trace_json
from graphopt.report.traces.snapshot import snapshot, snapshot_bytes
from graphopt.report.traces.timeline import HeldSpan, Timeline

#: What the viewer's own reader of pickles knows.
OPCODES = re.findall(
    r"\w+",
    """PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT SHORT_BINUNICODE BINUNICODE
    EMPTY_DICT DICT SETITEM SETITEMS EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 MEMOIZE
    BINPUT LONG_BINPUT BINGET LONG_BINGET""",
)


class Blocks(nn.Module):
    """Blocks with dropout, which keeps states where it is recomputed; it may break in the middle."""

    def __init__(self, width: int, *, breaks: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 4 * width), nn.Tanh(), nn.Dropout(0.1), nn.Linear(4 * width, width))
            for _ in range(4)
        )
        self.breaks = breaks

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second, third, fourth = self.blocks
        x = x + first(x)
        x = x + second(x)
        if self.breaks:
            torch._dynamo.graph_break()
        x = x + third(x)
        return (x + fourth(x)).square().mean()


def optimized(case: str, folder: Path) -> Any:
    torch.manual_seed(0)
    width, rows = {"moved": (128, 512), "whole": (32, 512)}.get(case, (32, 64))  # masks larger than a generator's state
    model, x = Blocks(width, breaks=case == "breaks"), torch.randn(rows, width)
    if case == "step":
        optimizer = torch.optim.AdamW(model.parameters())
        options: dict[str, Any] = {"accumulate": 2, "example_inputs": (x,), "cost_model": "roofline"}
        return graphopt.train_step(model, None, optimizer, "1GiB", **options)
    options = {"cost_model": "roofline", "offload": folder if case == "moved" else None}
    plan = plan_model(model, (x,), mem_budget="1GiB", **options).plan
    spare = 0 if case == "whole" else (plan.eager_peak_bytes - plan.minimum_bytes) // 3
    return plan_model(model, (x,), mem_budget=plan.minimum_bytes + spare, **options)


@pytest.fixture(scope="module", params=["whole", "breaks", "moved", "step"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        real = where.measure_link
        patch.setattr(where, "measure_link", lambda *args: type(real(*args))(1e11, 1e11, 1e-7))
        where._link_of.cache_clear()
        yield request.param, optimized(request.param, tmp_path_factory.mktemp("moved"))


@pytest.fixture(scope="module")
def timeline(case: tuple[str, Any]) -> Timeline:
    found: Timeline = case[1].timeline
    return found


def live_bytes(held: list[tuple[int, int, int]], runs: int) -> list[int]:
    return [sum(size for size, first, last in held if first <= run <= last) for run in range(runs)]


@pytest.mark.fast(2)
def test_what_is_held_is_what_the_simulator_says(case: tuple[str, Any], timeline: Timeline) -> None:
    name, plan = case[0], case[1].plan
    resident = sum(timeline.resident_bytes.values())
    held = live_bytes([(span.bytes, span.first, span.last) for span in timeline.held], len(timeline.runs))
    assert [resident + size for size in held] == [run.live_bytes for run in timeline.runs]
    assert timeline.peak_bytes == plan.peak_bytes
    kinds, ways = {span.kind for span in timeline.held}, {run.how for run in timeline.runs}
    assert ("recomputed" in ways) == ("recomputed" in kinds) == (name in ("whole", "breaks"))
    assert bool(timeline.moved) == (name == "moved")
    assert ("generator states" in kinds) == any("dropout" in each for each in plan.recomputed)
    assert "generator states" in kinds or name != "whole", "nothing to see"
    assert len({run.graph for run in timeline.runs if run.graph}) == (2 if name == "breaks" else 1)


def test_seconds_and_recomputations_are_the_plans(case: tuple[str, Any], timeline: Timeline) -> None:
    plan: Plan = case[1].plan
    assert timeline.seconds == pytest.approx(sum(graph.seconds for graph in plan.graphs), rel=1e-9)
    assert all(a.begin_seconds + a.seconds <= b.begin_seconds + 1e-12 for a, b in pairwise(timeline.runs))
    again = [run.name for run in timeline.runs if run.how == "recomputed"]
    assert sorted(again) == sorted(plan.recomputed)
    assert sum(moved.bytes for moved in timeline.moved) == plan.moved_bytes
    assert all(run.phase == "backward" for run in timeline.runs if run.name in again and run.how == "recomputed")


def test_the_snapshot_replayed_has_the_plans_peak(case: tuple[str, Any], timeline: Timeline) -> None:
    data = pickle.loads(snapshot_bytes(timeline))
    there: dict[int, int] = {}
    live = most = 0
    (segment,), (trace,) = data["segments"], data["device_traces"]
    for event, following in zip(trace, [*trace[1:], None], strict=True):
        address, size = event["addr"], event["size"]
        if event["action"] == "alloc":
            assert all(address >= a + s or address + size <= a for a, s in there.items()), "two values in one place"
            there[address] = size
            live += size
        elif event["action"] == "free_requested":
            assert following["action"] == "free_completed" and following["addr"] == address
        elif event["action"] == "free_completed":
            live -= there.pop(address)
        most = max(most, live)
    assert most == case[1].plan.peak_bytes
    at_the_end = {b["address"]: b["size"] for b in segment["blocks"] if b["state"] == "active_allocated"}
    assert at_the_end == there
    assert sum(block["size"] for block in segment["blocks"]) == segment["total_size"] >= most
    assert [e["time_us"] for e in trace] == sorted(e["time_us"] for e in trace)


def test_pytorchs_memory_viewer_takes_it(timeline: Timeline) -> None:
    data = snapshot(timeline)
    for page in (
        _memory_viz.trace_plot(data),
        _memory_viz.trace_plot(data, plot_segments=True),
        _memory_viz.segment_plot(data),
    ):
        assert "MemoryViz.js" in page
    assert f"total_allocated: {_memory_viz.Bytes(data['segments'][0]['allocated_size'])}" in _memory_viz.segsum(data)
    assert f"{len(data['device_traces'][0])} entries" in _memory_viz.trace(data)
    assert "active_allocated;parameters:0:parameters" in _memory_viz.memory(data, format_flamegraph=lambda lines: lines)
    assert {op.name for op, _, _ in pickletools.genops(snapshot_bytes(timeline))} <= set(OPCODES)
    categories = {event["category"] for event in data["device_traces"][0]}
    assert "unknown" in categories and "parameters" in categories


def test_a_snapshot_names_values_and_the_users_lines(timeline: Timeline) -> None:
    frames = [event["frames"] for event in snapshot(timeline)["device_traces"][0] if event["frames"]]
    named = [both for both in frames if len(both) == 2]
    assert len(named) > len(frames) / 2
    assert all(isinstance(f["line"], int) and f["filename"] and f["name"] for both in frames for f in both)
    assert any(own["filename"] == __file__ and own["name"] == "forward" and own["line"] > 0 for _, own in named)
    assert any(value["filename"].startswith("activations blocks.0") for value, _ in named)


def test_the_trace_is_one_that_perfetto_reads(case: tuple[str, Any], timeline: Timeline) -> None:
    data = json.loads(trace_json(timeline))
    events = data["traceEvents"]
    assert {event["ph"] for event in events} == {"M", "X", "C"}
    assert all(event["ts"] >= 0 and isinstance(event["args"], dict) for event in events)
    assert [event["ts"] for event in events] == sorted(event["ts"] for event in events)
    lanes = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert set(lanes.values()) == {"phases", "operators"} | ({"transfers"} if timeline.moved else set())
    for lane in lanes:
        slices = [event for event in events if event["ph"] == "X" and event["tid"] == lane]
        assert slices and all(event["dur"] >= 0 and event["cat"] for event in slices)
        assert all(a["ts"] + a["dur"] <= b["ts"] + 2e-3 for a, b in pairwise(slices)), "two at once on one lane"
    counts = [event["args"]["bytes"] for event in events if event["ph"] == "C"]
    assert max(counts) == case[1].plan.peak_bytes == data["otherData"]["peak_bytes"]
    assert counts[-1] == sum(timeline.resident_bytes.values())
    recomputed = [event for event in events if "recomputed" in event.get("cat", "")]
    assert len(recomputed) == len(case[1].plan.recomputed)
    assert all(event["name"].endswith(" (recomputed)") for event in recomputed)


def test_files_are_written_whole_or_not_at_all(timeline: Timeline, tmp_path: Path) -> None:
    timeline.save_trace(tmp_path / "trace.json")
    timeline.save_snapshot(tmp_path / "snapshot.pickle")
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert pickle.load(io.BytesIO((tmp_path / "snapshot.pickle").read_bytes())) == snapshot(timeline)
    for save in (timeline.save_trace, timeline.save_snapshot):
        with pytest.raises(graphopt.UsageError, match="cannot write"):
            save(tmp_path / "nowhere" / "file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["snapshot.pickle", "trace.json"]


def test_spans_that_are_alike_are_told_apart(timeline: Timeline) -> None:
    span = HeldSpan("twin", "workspace", 100, 0, 0)
    twins = Timeline("m", "cpu", 1, 0.0, {}, timeline.runs[:1], (span, span), ())
    taken = [event["addr"] for event in snapshot(twins)["device_traces"][0] if event["action"] == "alloc"]
    assert len(set(taken)) == 2

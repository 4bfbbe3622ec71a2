"""Timeline: a predicted step run by run, with what is alive meanwhile. Plain data, which the files are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class OpRun:
    """One run of an op: in which graph and `phase` ("forward", "backward" or "update"), and what it does.

    `how` is "computed", "recomputed", or "moved" for what only begins a transfer or waits for one. `live_bytes` is all
    that is on the device meanwhile. `module_path` and `source` ("file.py:12 in forward") are "" where unknown.
    """

    name: str
    graph: str
    phase: str
    how: str
    module_path: str
    source: str
    begin_seconds: float
    seconds: float
    live_bytes: int


@dataclass(frozen=True)
class HeldSpan:
    """Bytes that are there from run `first` to run `last` of a timeline, both included.

    `kind` is one of those of a report's breakdown; `label` says shape and dtype, "" where there are none.
    """

    name: str
    kind: str
    bytes: int
    first: int
    last: int
    label: str = ""
    module_path: str = ""
    source: str = ""


@dataclass(frozen=True)
class MovedSpan:
    """A transfer: what an op of this name made goes out of memory, or comes back (`is_fetch`)."""

    name: str
    is_fetch: bool
    bytes: int
    begin_seconds: float
    seconds: float


@dataclass(frozen=True)
class Timeline:
    """A step as it is predicted: `runs` in order, the values that are `held`, and those that are `moved` meanwhile.

    `resident_bytes` are there all the time, by kind. Of kernels that were compiled it is the plan that they run, not
    what they were measured to take beside it.
    """

    model: str
    device: str
    budget_bytes: int
    seconds: float
    resident_bytes: Mapping[str, int]
    runs: tuple[OpRun, ...]
    held: tuple[HeldSpan, ...]
    moved: tuple[MovedSpan, ...]

    @property
    def peak_bytes(self) -> int:
        """The highest number of bytes on the device."""
        return max(run.live_bytes for run in self.runs)

    def save_trace(self, path: str | Path) -> None:
        """Write it as a trace for ui.perfetto.dev or chrome://tracing; raises UsageError where it cannot be written."""
        from graphopt.base.records import write_text
        from graphopt.report.traces.chrome import trace_json

        write_text(path, trace_json(self))

    def save_snapshot(self, path: str | Path) -> None:
        """Write it as a snapshot for pytorch.org/memory_viz; raises UsageError where it cannot be written."""
        from graphopt.base.records import write_bytes
        from graphopt.report.traces.snapshot import snapshot_bytes

        write_bytes(path, snapshot_bytes(self))

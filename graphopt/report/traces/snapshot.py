"""Timeline -> snapshot of an allocator, as `torch.cuda.memory._snapshot()` gives it, for pytorch.org/memory_viz.

Sizes, and when each is taken and given back, are the plan's. Addresses are made up: the first gap that is large enough.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from graphopt.report.traces.timeline import HeldSpan, Timeline

#: Where addresses begin: nothing is at 0.
_FIRST_ADDRESS = 2**32
#: The viewer reads what this protocol writes, and none above it.
_PROTOCOL = 4
_SOURCE = re.compile(r"(?P<file>.*):(?P<line>\d+)(?: in (?P<function>.*))?")
#: The viewer fails over categories among which this is not.
_NO_CATEGORY = "unknown"


def snapshot_bytes(timeline: Timeline) -> bytes:
    """The snapshot as a pickle of plain data."""
    return pickle.dumps(snapshot(timeline), protocol=_PROTOCOL)


def snapshot(timeline: Timeline) -> dict[str, Any]:
    """The snapshot as plain data: one segment, with what is there at the end, and the events that led to it.

    An event's first frame names the value, its kind and the module; the second is the user's line.
    """
    times = [round(run.begin_seconds * 1e6) for run in timeline.runs]
    resident = [HeldSpan(kind, kind, size, 0, len(times) - 1) for kind, size in timeline.resident_bytes.items() if size]
    spans = [*resident, *timeline.held]
    begins, ends = _by_run(spans, len(times))
    heap, events, there = _Heap(), list[dict[str, Any]](), dict[int, int]()
    for run, time in enumerate(times):
        for number in ends[run]:
            address = there.pop(number)
            heap.give(address, spans[number].bytes)
            events += [_event(action, address, spans[number], time) for action in ("free_requested", "free_completed")]
        for number in begins[run]:
            there[number] = heap.take(spans[number].bytes)
            events.append(_event("alloc", there[number], spans[number], time))
    whole = {"action": "segment_alloc", "addr": _FIRST_ADDRESS, "size": heap.end - _FIRST_ADDRESS, "stream": 0}
    whole |= {"time_us": 0, "frames": [], "category": _NO_CATEGORY}
    return {
        "segments": [_segment({there[n]: spans[n] for n in there}, heap.end)],
        "device_traces": [[whole, *events]],
        "allocator_settings": {},
    }


def _by_run(spans: Sequence[HeldSpan], count: int) -> tuple[list[list[int]], list[list[int]]]:
    """Spans, by number, for the run that they begin with, and for the one before which they end."""
    begins: list[list[int]] = [[] for _ in range(count)]
    ends: list[list[int]] = [[] for _ in range(count + 1)]
    for number, span in enumerate(spans):
        begins[span.first].append(number)
        ends[span.last + 1].append(number)
    return begins, ends


@dataclass
class _Heap:
    """Addresses that are free: gaps in order, and everything from `end` on."""

    end: int = _FIRST_ADDRESS
    gaps: list[tuple[int, int]] = field(default_factory=list)

    def take(self, size: int) -> int:
        """The address of so many bytes."""
        for place, (address, room) in enumerate(self.gaps):
            if room >= size:
                self.gaps[place : place + 1] = [(address + size, room - size)] if room > size else []
                return address
        self.end += size
        return self.end - size

    def give(self, address: int, size: int) -> None:
        """Free again; neighbouring gaps become one."""
        joined: list[tuple[int, int]] = []
        for gap, room in sorted([*self.gaps, (address, size)]):
            if joined and sum(joined[-1]) == gap:
                joined[-1] = joined[-1][0], joined[-1][1] + room
            else:
                joined.append((gap, room))
        self.gaps = joined


def _event(action: str, address: int, span: HeldSpan, time: int) -> dict[str, Any]:
    return {
        "action": action,
        "addr": address,
        "size": span.bytes,
        "stream": 0,
        "time_us": time,
        "frames": _frames(span),
        "category": span.kind,
    }


def _frames(span: HeldSpan) -> list[dict[str, Any]]:
    about = " ".join(filter(None, (span.name, span.label)))
    frames = [{"filename": f"{span.kind} {span.module_path}".rstrip(), "line": 0, "name": about}]
    if found := _SOURCE.fullmatch(span.source):
        function = found["function"] or "?"
        frames.append({"filename": found["file"], "line": int(found["line"]), "name": function})
    return frames


def _segment(there: Mapping[int, HeldSpan], end: int) -> dict[str, Any]:
    """The segment at the end: what is there, by address."""
    blocks: list[dict[str, Any]] = []
    at = _FIRST_ADDRESS
    for address, span in sorted(there.items(), key=itemgetter(0)):
        blocks += _gap(at, address)
        blocks.append(_block(address, span.bytes, "active_allocated", _frames(span)))
        at = address + span.bytes
    blocks += _gap(at, end)
    active_bytes = sum(span.bytes for span in there.values())
    return {
        "device": 0,
        "address": _FIRST_ADDRESS,
        "total_size": end - _FIRST_ADDRESS,
        "allocated_size": active_bytes,
        "active_size": active_bytes,
        "requested_size": active_bytes,
        "stream": 0,
        "segment_type": "large",
        "segment_pool_id": (0, 0),
        "is_expandable": False,
        "frames": [],
        "blocks": blocks,
    }


def _gap(begin: int, end: int) -> list[dict[str, Any]]:
    return [_block(begin, end - begin, "inactive", [])] if end > begin else []


def _block(address: int, size: int, state: str, frames: list[dict[str, Any]]) -> dict[str, Any]:
    return {"address": address, "size": size, "requested_size": size, "state": state, "frames": frames}

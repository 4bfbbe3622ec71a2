"""A schedule step by step, as the simulator has it: what runs, and what is alive while it does. Plain data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from graphopt.problem.schedule import runs_again


@dataclass(frozen=True)
class OpRow:
    """An op: where it comes from, one run's seconds and workspace, and the values it reads and makes.

    One that `moves` fetches or hands on what another op made, and computes nothing.
    """

    name: str
    module_path: str
    source: str
    seconds: float
    workspace_bytes: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    backward: bool
    recomputable: bool
    moves: bool


@dataclass(frozen=True)
class ValueRow:
    """A value, and the op that makes it; -1 where it is resident."""

    name: str
    bytes: int
    kind: str
    shape: tuple[int, ...]
    dtype: str
    maker: int


@dataclass(frozen=True)
class GraphTable:
    """The ops and values of one form of a graph, by the numbers that schedules have."""

    ops: tuple[OpRow, ...]
    values: tuple[ValueRow, ...]

    def __repr__(self) -> str:
        return f"<GraphTable: {len(self.ops)} ops, {len(self.values)} values>"


@dataclass(frozen=True)
class GraphTimeline:
    """One schedule of a graph: "eager", "chosen" or "minimum".

    `live_bytes` are the graph's own at each step: the values whose `lifetimes` have it, the op's workspace, and
    `state_bytes`, generator states that are kept for what runs again. A lifetime is (value, first step, last step);
    they come in the order of their first steps. `beside_bytes` is what the model's other graphs hold during the
    forward, and from the `boundary_step` on.
    """

    name: str
    table: GraphTable
    schedule: tuple[int, ...]
    boundary_step: int
    live_bytes: tuple[int, ...]
    state_bytes: tuple[int, ...]
    lifetimes: tuple[tuple[int, int, int], ...]
    beside_bytes: tuple[int, int] = (0, 0)

    def __repr__(self) -> str:
        peak = f"{self.peak_bytes:,} bytes at step {self.peak_step}"
        return f"<GraphTimeline {self.name!r}: {len(self.schedule)} steps, {peak}>"

    @cached_property
    def total_bytes(self) -> tuple[int, ...]:
        """Live bytes at each step, those of other graphs counted; without what is resident."""
        forward, backward = self.beside_bytes
        at = self.boundary_step
        return (*(b + forward for b in self.live_bytes[:at]), *(b + backward for b in self.live_bytes[at:]))

    @property
    def peak_bytes(self) -> int:
        """The most of `total_bytes`; 0 where there is no step."""
        return max(self.total_bytes, default=0)

    @property
    def peak_step(self) -> int:
        """The first step at which that is reached."""
        return self.total_bytes.index(self.peak_bytes) if self.total_bytes else 0

    @property
    def peak_op(self) -> OpRow | None:
        """What runs at the peak."""
        return self.table.ops[self.schedule[self.peak_step]] if self.schedule else None

    @cached_property
    def is_again(self) -> tuple[bool, ...]:
        """For each step whether its op has run before."""
        return runs_again(self.schedule)

    def alive_at(self, step: int) -> Iterator[tuple[int, str]]:
        """The values that are alive while a step runs, each with its kind; what was made a second time apart."""
        for value, first, last in self.lifetimes:
            if first <= step <= last:
                kind = self.table.values[value].kind
                if kind == "activations" and self.is_again[first]:
                    kind = "fetched" if self.table.ops[self.schedule[first]].moves else "recomputed"
                yield value, kind


#: The kinds that a peak is made of, in the order in which they are shown.
_KINDS = ("activations", "recomputed", "fetched", "gradients", "outputs", "tangents", "workspace", "generator states")


def kinds_at(timeline: GraphTimeline, step: int) -> dict[str, int]:
    """The graph's own bytes at a step, by kind; together they are `live_bytes[step]`."""
    kinds = dict.fromkeys(_KINDS, 0)
    for value, kind in timeline.alive_at(step):
        kinds[kind] = kinds.get(kind, 0) + timeline.table.values[value].bytes
    kinds["workspace"] += timeline.table.ops[timeline.schedule[step]].workspace_bytes
    kinds["generator states"] += timeline.state_bytes[step]
    return {kind: size for kind, size in kinds.items() if size}

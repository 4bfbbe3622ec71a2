"""Plan: a schedule, what was predicted of it, and what it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from graphopt.base import records
from graphopt.base.glance import Drawing, Line, glance_html, stairs
from graphopt.base.units import format_bytes
from graphopt.problem.pieces import Pieces

SCHEMA = "graphopt.plan/7"


#: Nearer to the lower bound than this share of it, a plan is proven to be optimal.
PROVEN = 1e-9


@dataclass(frozen=True)
class Checkpoint:
    """A value alive at the end of the forward and read by the backward.

    `recomputes` names the ops that run again from it; an op is charged to the checkpoint nearest
    above it. `module_path` and `source` ("file.py:12 in forward") are "" where unknown.
    """

    value: str
    bytes: int
    shape: tuple[int, ...]
    dtype: str
    module_path: str
    source: str
    recomputes: tuple[str, ...]
    recompute_seconds: float


@dataclass(frozen=True)
class ModuleShare:
    """What one module's own operators take of a graph; those of its children are in theirs. `path` is "" where unknown.

    `seconds` are of one run of each of its ops, `again_seconds` of what runs again. `peak_bytes` is what it has alive
    at the peak of the plan, workspace included.
    """

    path: str
    seconds: float
    peak_bytes: int
    kept: int
    kept_bytes: int
    recomputed: int
    again_seconds: float
    fetched: int
    fetched_bytes: int


@dataclass(frozen=True)
class KeptPoint:
    """Another schedule of the same graph: its price, the planner that found it, and `runs.runs_of` it."""

    peak_bytes: int
    seconds: float
    planner: str
    runs: str


@dataclass(frozen=True)
class GraphPlan:
    """The plan of one captured graph. Bytes are the graph's own values; nothing resident is in them.

    The graph runs in `pieces`; its ops are those of that form, its hash is that of the whole. `numerics` is what was
    asked for.
    No schedule of the graph inside `budget_bytes` takes less than `bound_seconds`. `curve` is what
    the plan knows of other budgets: peaks increase, seconds strictly decrease. `sizes` are those of the inputs that the
    graph serves others of, by name ("args[0].size(1)"), with the least and the largest that its schedule was chosen
    for; empty where it serves one set of shapes.
    What the ops `moved` (in the form without transfers) make may be moved out of memory, and `fetch_seconds` is what
    planners took fetching it for; `fetched` names what is fetched, once for each time, and `moved_bytes` go either way.
    `modules` has what each module takes, in the order in which they first run.
    """

    name: str
    graph_hash: str
    planner: str
    cost_model: str
    compiler: str
    numerics: str
    pieces: Pieces
    schedule: tuple[int, ...]
    budget_bytes: int
    peak_bytes: int
    eager_peak_bytes: int
    minimum_bytes: int
    seconds: float
    eager_seconds: float
    bound_seconds: float
    checkpoints: tuple[Checkpoint, ...]
    recomputed: tuple[str, ...]
    moved: tuple[int, ...]
    fetch_seconds: tuple[float, ...]
    fetched: tuple[str, ...]
    moved_bytes: int
    modules: tuple[ModuleShare, ...]
    curve: tuple[KeptPoint, ...]
    sizes: Mapping[str, tuple[int, int]]

    def __repr__(self) -> str:
        return (
            f"<GraphPlan {self.name!r}: {format_bytes(self.peak_bytes)} of its own, {len(self.schedule)} steps, "
            f"{len(self.checkpoints)} checkpoints, {len(self.recomputed)} ops run again>"
        )


@dataclass(frozen=True)
class Plan:
    """The plan of a model: one graph plan a captured graph, in the order in which they run.

    `peak_bytes`, `eager_peak_bytes` and `minimum_bytes` are in the budget's own measure:
    everything on the device while one training step runs. Of kernels that were compiled `peak_bytes` is what they were
    measured to take. `resident_bytes` says what is there
    before it starts, by kind ("parameters", "buffers", "inputs", "optimizer", "reserve").
    """

    model: str
    device: str
    torch_version: str
    budget_bytes: int
    peak_bytes: int
    eager_peak_bytes: int
    minimum_bytes: int
    resident_bytes: Mapping[str, int]
    graphs: tuple[GraphPlan, ...]

    @property
    def overhead(self) -> float:
        """Predicted extra time over eager, a fraction."""
        eager_seconds = sum(graph.eager_seconds for graph in self.graphs)
        return sum(graph.seconds for graph in self.graphs) / eager_seconds - 1 if eager_seconds else 0.0

    @property
    def bound_overhead(self) -> float:
        """A fraction of eager's time that no plan inside the budget can go below; for several graphs, as it is shared.

        It is a bound, not a plan: the best there is may be above it.
        """
        eager_seconds = sum(graph.eager_seconds for graph in self.graphs)
        return sum(graph.bound_seconds for graph in self.graphs) / eager_seconds - 1 if eager_seconds else 0.0

    @property
    def above_optimum(self) -> float:
        """At most this fraction of time more than the best plan inside the budget; 0 where that is proven."""
        bound_seconds = sum(graph.bound_seconds for graph in self.graphs)
        above = sum(graph.seconds for graph in self.graphs) / bound_seconds - 1 if bound_seconds else 0.0
        return above if above > PROVEN else 0.0

    @property
    def compiler(self) -> str:
        """Whose kernels run the plan: "eager" or "inductor"."""
        return ", ".join(dict.fromkeys(graph.compiler for graph in self.graphs)) or "eager"

    @property
    def numerics(self) -> str:
        """Whose bits were asked for: "bitwise" eager's, or with sums "reordered"."""
        return ", ".join(dict.fromkeys(graph.numerics for graph in self.graphs)) or "bitwise"

    @property
    def pieces(self) -> tuple[Pieces, ...]:
        """In how many pieces the largest values of each graph are made."""
        return tuple(graph.pieces for graph in self.graphs)

    @property
    def sizes(self) -> Mapping[str, tuple[int, int]]:
        """The sizes of inputs that it serves others of, with the least and the largest that it was chosen for."""
        return {name: both for graph in self.graphs for name, both in graph.sizes.items()}

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """The checkpoints of every graph, in order."""
        return tuple(checkpoint for graph in self.graphs for checkpoint in graph.checkpoints)

    @property
    def recomputed(self) -> tuple[str, ...]:
        """Names of the recomputed ops of every graph, once for each time they run again."""
        return tuple(name for graph in self.graphs for name in graph.recomputed)

    @property
    def fetched(self) -> tuple[str, ...]:
        """Names of the ops whose results are fetched back from where they were moved, once for each time."""
        return tuple(name for graph in self.graphs for name in graph.fetched)

    @property
    def moved_bytes(self) -> int:
        """Bytes that a step moves out of memory and back, together."""
        return sum(graph.moved_bytes for graph in self.graphs)

    @property
    def planner(self) -> str:
        """The planner whose schedules were chosen."""
        return ", ".join(dict.fromkeys(graph.planner for graph in self.graphs))

    def figures(self) -> list[tuple[str, str]]:
        """Labels with what is predicted, for people."""
        again = f"{len(self.recomputed)} ops run again"
        if self.fetched:
            again += f", {len(self.fetched)} values are fetched back"
        kept = format_bytes(sum(checkpoint.bytes for checkpoint in self.checkpoints))
        return [
            ("budget", format_bytes(self.budget_bytes)),
            ("predicted peak", f"{format_bytes(self.peak_bytes)}, eager {format_bytes(self.eager_peak_bytes)}"),
            ("smallest budget", format_bytes(self.minimum_bytes)),
            ("predicted time", f"{self.overhead:+.1%} over eager"),
            ("checkpoints", f"{len(self.checkpoints)}, {kept}; {again}"),
            ("planner", f"{self.planner} on {self.device}, torch {self.torch_version}"),
        ]

    def __repr__(self) -> str:
        return (
            f"<Plan of {self.model}: {format_bytes(self.peak_bytes)} of {format_bytes(self.budget_bytes)}, "
            f"{self.overhead:+.1%} time; {len(self.checkpoints)} checkpoints, {len(self.recomputed)} ops run again>"
        )

    def _repr_html_(self) -> str:
        curve = self.graphs[0].curve if len(self.graphs) == 1 else ()
        return glance_html(f"Plan of {self.model}", self.figures(), self._drawing() if len(curve) > 1 else None)

    def _drawing(self) -> Drawing:
        """The kept curve of the one graph, everything on the device counted."""
        (graph,), resident = self.graphs, sum(self.resident_bytes.values())
        eager_seconds = graph.eager_seconds or 1.0
        points = sorted((resident + p.peak_bytes, p.seconds / eager_seconds - 1) for p in graph.curve)
        chosen = resident + graph.peak_bytes, graph.seconds / eager_seconds - 1
        left, right = (f"{format_bytes(size)}: {extra:+.1%} time" for size, extra in (points[0], points[-1]))
        return Drawing((Line(stairs(points), filled=True),), "Extra time over peak memory", left, right, dots=(chosen,))

    def save(self, path: str | Path) -> None:
        """Write the plan as a JSON file that `load` reads back exactly."""
        records.write_file(path, SCHEMA, "plan", self)

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan file.

        Raises PlanMismatchError, naming the field, where the file is not what `save` wrote, and
        UsageError where it cannot be opened.
        """
        return records.read_file(path, SCHEMA, "plan", cls)

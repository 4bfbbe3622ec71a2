"""Report: what a plan means, as plain data that text, HTML and JSON are made from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from graphopt.base.errors import UsageError
from graphopt.base.records import write_text
from graphopt.problem.found_scratch import FoundScratch
from graphopt.problem.graph_break import GraphBreak
from graphopt.problem.plan import GraphPlan, Plan
from graphopt.report.timeline import GraphTimeline


@dataclass(frozen=True)
class Comparison:
    """One way to run a graph: its name ("eager", "sqrt_n", "chosen", "minimum"), peak and time.

    `peak_bytes` is None where that way has no schedule inside the budget; it is the graph's own
    values, as everywhere in GraphReport.
    """

    name: str
    peak_bytes: int | None
    overhead: float | None


@dataclass(frozen=True)
class GraphReport:
    """One captured graph: its plan and what is needed to draw it.

    `timelines` are eager's, the chosen schedule's and that of the least budget, by these names; `break_reason` is why
    the capture ended here ("" where it is the whole model). "eager" is the captured graph as it was traced: in its own
    order, and without recomputation. `curve` has (own peak bytes, extra time over that, a fraction, the planner that
    found it), and `floor_changes` what would lower the least budget, with the bytes that it saves, in words.
    """

    plan: GraphPlan
    break_reason: str
    timelines: tuple[GraphTimeline, ...]
    comparisons: tuple[Comparison, ...]
    curve: tuple[tuple[int, float, str], ...]
    floor_changes: tuple[str, ...]

    def __repr__(self) -> str:
        return f"<GraphReport of {self.plan!r}>"

    def timeline(self, name: str) -> GraphTimeline | None:
        """The timeline of that name; None where there is none, or nothing in it."""
        return next((each for each in self.timelines if each.name == name and each.schedule), None)

    @property
    def peak_bytes(self) -> int:
        """The most while this graph runs, what others hold counted; what is resident is not."""
        chosen = self.timeline("chosen")
        return chosen.peak_bytes if chosen is not None else self.plan.peak_bytes


@dataclass(frozen=True)
class Measured:
    """Measured from outside: peaks in the budget's measure, eager's of the model as it is, not of a captured graph.

    `time_ratio` is optimized over eager, the median of `time_rounds` rounds, `time_quartiles` the first and the third
    quartile.
    """

    peak_bytes: int
    eager_peak_bytes: int
    time_ratio: float | None = None
    time_quartiles: tuple[float, float] | None = None
    time_rounds: int = 0


@dataclass(frozen=True)
class TrainedSteps:
    """Steps of a training loop that were measured: how many, how many of them took more than the budget leaves them.

    `peak_bytes` is the last one's, `most_bytes` the highest, in the budget's measure but without its reserve.
    """

    count: int
    over_budget: int
    peak_bytes: int
    most_bytes: int


@dataclass(frozen=True)
class TakenStep:
    """One measured step of a training loop: its peak as it was planned, as it was measured, and where it was, in words.

    Both in the budget's measure, but without its reserve. What is planned changes where the watch corrected the plan.
    """

    predicted_bytes: int
    measured_bytes: int
    place: str


@dataclass(frozen=True)
class OutsideShare:
    """What runs outside of the planned graphs: a share of a step's seconds, and bytes at a peak of `peak_bytes`.

    A median and the last of `steps` training steps; where there are none, of one forward alone. None
    where it was not measured.
    """

    seconds_share: float | None
    bytes: int | None
    peak_bytes: int
    steps: int


@dataclass(frozen=True)
class StepFigures:
    """What a training step adds: its last batch's micro-batches, and their predicted seconds.

    `tail_bytes` says what is alive, by kind, while the optimizer updates, beside what is resident. With several
    `ranks`, `sent_bytes` is what each sends in a step; `exchange` says how gradients travel, and why. `ways` is what
    else is done in another way than in a plain loop, each with its name.
    """

    micro_batches: int
    micro_rows: int
    seconds: float
    tail_bytes: Mapping[str, int]
    ranks: int = 1
    sent_bytes: int = 0
    exchange: tuple[str, ...] = ()
    ways: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class CompiledKernels:
    """What Inductor made of a plan: rounds of planning and compiling, their seconds, and peaks in the budget's measure.

    `planned_bytes` is the peak of the schedule in force, `measured_bytes` that of its kernels on made-up inputs.
    """

    rounds: int
    compile_seconds: float
    planned_bytes: int
    measured_bytes: int


@dataclass(frozen=True)
class Report:
    """All that is known of one optimized model, or of a training `step`. `str(report)` is the text of it.

    `breaks` says why some of the model runs outside of the planned graphs, and `outside` how much that is;
    `size_conditions` what must hold of sizes for these graphs to serve them. `history` has the steps that were measured
    last, oldest first, and `scratch` the operators that took more in them than was planned.
    """

    plan: Plan
    graphs: tuple[GraphReport, ...]
    plan_seconds: float
    measured: Measured | None = None
    step: StepFigures | None = None
    trained: TrainedSteps | None = None
    outside: OutsideShare | None = None
    breaks: tuple[GraphBreak, ...] = ()
    compiled: CompiledKernels | None = None
    size_conditions: tuple[str, ...] = ()
    history: tuple[TakenStep, ...] = ()
    scratch: tuple[FoundScratch, ...] = ()

    def __str__(self) -> str:
        from graphopt.report.text import render_text

        return render_text(self)

    def __repr__(self) -> str:
        return f"<Report on {self.plan!r}>"

    def _repr_html_(self) -> str:
        from graphopt.report.notebook import report_glance

        return report_glance(self)

    def save(self, path: str | Path) -> None:
        """Write it as one self-contained page, `*.html`, or as data, `*.json`.

        Raises UsageError for another name, and where the file cannot be written.
        """
        suffix = Path(path).suffix.lower()
        if suffix == ".html":
            from graphopt.report.html import render_html

            write_text(path, render_html(self))
        elif suffix == ".json":
            from graphopt.report.json import report_to_json

            write_text(path, json.dumps(report_to_json(self), indent=1) + "\n")
        else:
            raise UsageError(f"a report is written as a page, NAME.html, or as data, NAME.json, not as {str(path)!r}")

"""`auto` against its peers on captured models: same problem, same costs, same simulator.

python benchmarks/peers.py [model ...] [--cost-model roofline] [--json out.json] [--save-lost FOLDER]

Peers are (a) every block wrapped in `torch.utils.checkpoint` and (b) PyTorch's
`activation_memory_budget` at ten ratios. Each peer's decision becomes a schedule of our problem, so
that its true peak and its time come from the simulator that judges `auto`. `auto` is then given the
peer's peak and compared by time, and given the peer's time and compared by peak.

Generator states that a recomputed random op needs are left out on all sides (5 kB each).
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common import capture, write_json
from peer_schedules import checkpoint_every_block, pytorch_budget
from rich.console import Console
from rich.table import Table

from graphopt.planned import CapturedGraph
from graphopt.planners import pareto_curve
from graphopt.problem import Problem, save_problem
from graphopt.schedule import Schedule, simulate

MODELS = ("gpt2", "bert", "llama", "vit", "t5", "gpt2_anchor", "bert_anchor")
CURVE_MODELS = ("gpt2_anchor", "bert_anchor", "resnet50_anchor", "unet_anchor")
RATIOS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9, 1.0)
SHARES = (0.9, 0.7, 0.5, 0.4, 0.35, 0.3, 0.25, 0.2)

EQUAL_SECONDS = 5e-4
"""Overheads nearer than this share of eager's time count as equal: the cost model knows no better."""

PLANNERS_OF_OTHERS = ("Rockmate", "rotor")
PUBLISHED_SHARES = (0.7, 0.5, 0.35, 0.25)
PUBLISHED = {
    ("gpt2_anchor", "rotor"): ("10.9 %", "17.0 %", "22.7 %", "26.7 %"),
    ("gpt2_anchor", "Rockmate"): ("4.6 %", "12.6 %", "19.7 %", "24.9 %"),
    ("bert_anchor", "rotor"): ("14.5 %", "20.4 %", "24.9 %", "29.2 %"),
    ("bert_anchor", "Rockmate"): ("11.7 %", "17.7 %", "22.7 %", "26.3 %"),
    ("resnet50_anchor", "rotor"): ("14.1 %", "20.9 %", "29.0 %", "42.0 %"),
    ("resnet50_anchor", "Rockmate"): ("13 %", "19 %", "26 % (over)", "37 % (over)"),
    ("unet_anchor", "rotor"): ("infeasible", "infeasible", "infeasible", "infeasible"),
    ("unet_anchor", "Rockmate"): ("10.7 % (over)", "22 % (over)", "", ""),
}
"""Predicted overheads at PUBLISHED_SHARES of eager's peak, from ANCHORS, section 3.

"(over)": the peak measured was over the budget. Their peaks were measured with all gradients
allocated beforehand and left out; so is `auto`'s beside them.
"""


@dataclass(frozen=True)
class Row:
    """A peer's point, and what `auto` does at its peak and at its time; overheads are over eager's time."""

    model: str
    peer: str
    setting: str
    eager_peak_bytes: int
    peer_peak_bytes: int
    peer_overhead: float
    auto_overhead: float
    auto_peak_bytes: int
    note: str = ""

    @property
    def verdict(self) -> str:
        """How `auto` compares: by time at the peer's peak."""
        gap = self.auto_overhead - self.peer_overhead
        return "equal" if abs(gap) <= EQUAL_SECONDS else "better" if gap < 0 else "WORSE"


@dataclass(frozen=True)
class Share:
    """`auto` at a share of eager's peak; None is its minimum. The overhead is None where it has no plan."""

    model: str
    gradients: str
    share: float
    is_minimum: bool
    overhead: float | None


def auto_points(captured: CapturedGraph, problem: Problem) -> list[tuple[int, float]]:
    """(peak bytes, seconds) of `auto`, smallest peak first; the captured order is always one."""
    eager = simulate(problem, captured.captured_schedule)
    points = [(p.peak_bytes, p.seconds) for p in pareto_curve(problem)]
    return sorted([*points, (eager.peak_bytes, eager.seconds)])


def compare(captured: CapturedGraph, model: str, peer: str, setting: str, schedule: Schedule) -> Row:
    """One peer's schedule against `auto` at the same peak, and at the same time."""
    theirs, eager = simulate(captured.problem, schedule), captured.eager
    points = auto_points(captured, captured.problem)
    seconds = min((s for peak, s in points if peak <= theirs.peak_bytes), default=math.inf)
    allowed = theirs.seconds + EQUAL_SECONDS * eager.seconds
    return Row(
        model=model,
        peer=peer,
        setting=setting,
        eager_peak_bytes=eager.peak_bytes,
        peer_peak_bytes=theirs.peak_bytes,
        peer_overhead=theirs.seconds / eager.seconds - 1,
        auto_overhead=seconds / eager.seconds - 1,
        auto_peak_bytes=min((peak for peak, s in points if s <= allowed), default=eager.peak_bytes),
    )


def compare_all(captured: CapturedGraph, model: str, ratios: Sequence[float] = RATIOS) -> Iterator[Row]:
    """Every peer's points on one captured model."""
    yield compare(captured, model, "checkpoint", "every block", checkpoint_every_block(captured))
    for ratio in ratios:
        yield compare(captured, model, "PyTorch budget", f"{ratio:g}", pytorch_budget(captured, ratio))


def without_gradients(captured: CapturedGraph) -> Problem:
    """The problem where every gradient was allocated beforehand: one just made is added to it and gone."""
    step = captured.step
    kept = tuple(value for value in captured.problem.outputs if step.values[value].kind != "gradients")
    return dataclasses.replace(captured.problem, outputs=kept)


def shares_of(captured: CapturedGraph, model: str) -> Iterator[Share]:
    """`auto` at shares of eager's peak, once counting gradients and once leaving them out."""
    for gradients, problem in (("counted", captured.problem), ("left out", without_gradients(captured))):
        points = auto_points(captured, problem)
        eager = simulate(problem, captured.captured_schedule)
        for share in (*SHARES, points[0][0] / eager.peak_bytes):
            limit = round(share * eager.peak_bytes)
            seconds = min((s for peak, s in points if peak <= limit), default=None)
            overhead = None if seconds is None else seconds / eager.seconds - 1
            yield Share(model, gradients, share, share not in SHARES, overhead)


def percent(overhead: float) -> str:
    return f"{round(overhead, 4) + 0.0:+.2%}"


def peers_table(rows: Sequence[Row]) -> Table:
    columns = ("model", "peer", "setting", "peer's peak", "peer's overhead", "auto's overhead", "auto's peak")
    table = Table(
        *columns, "auto is", title="peaks as shares of eager's; auto's overhead at the peer's peak, peak at its time"
    )
    for row in rows:
        peaks = (row.peer_peak_bytes / row.eager_peak_bytes, row.auto_peak_bytes / row.eager_peak_bytes)
        figures = (f"{peaks[0]:.1%}", percent(row.peer_overhead), percent(row.auto_overhead), f"{peaks[1]:.1%}")
        style = {"better": "green", "equal": "", "WORSE": "red"}[row.verdict]
        table.add_row(row.model, row.peer, row.setting, *figures, row.verdict, style=style)
    return table


def shares_table(rows: Sequence[Share]) -> Table:
    columns = ("model", "share of eager's peak", "auto, gradients counted", "auto, gradients left out")
    table = Table(*columns, *PLANNERS_OF_OTHERS, title="auto beside figures published with gradients left out")
    for row in rows:
        if row.gradients != "counted":
            continue
        pairs = [r for r in rows if r.model == row.model and r.is_minimum == row.is_minimum]
        pair = [r for r in pairs if r.is_minimum or r.share == row.share]
        share = f"minimum {' / '.join(f'{r.share:.1%}' for r in pair)}" if row.is_minimum else f"{row.share:.0%}"
        texts = ["no plan" if r.overhead is None else percent(r.overhead) for r in pair]
        table.add_row(row.model, share, *texts, *(published(row, who) for who in PLANNERS_OF_OTHERS))
    return table


def published(row: Share, who: str) -> str:
    """What another planner is said to reach there; "" where nothing is known."""
    figures = dict(zip(PUBLISHED_SHARES, PUBLISHED.get((row.model, who), ()), strict=False))
    return figures.get(row.share, "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="names from tests/zoo")
    parser.add_argument("--cost-model", default="auto")
    parser.add_argument("--json", type=Path, metavar="PATH")
    parser.add_argument("--save-lost", type=Path, metavar="FOLDER", help="write problems where auto is worse to it")
    args = parser.parse_args()
    rows: list[Row] = []
    shares: list[Share] = []
    for model in args.models or dict.fromkeys((*MODELS, *CURVE_MODELS)):
        captured = capture(model, args.cost_model)
        if model not in CURVE_MODELS or model in MODELS:
            rows += compare_all(captured, model)
        if model in CURVE_MODELS:
            shares += shares_of(captured, model)
        if args.save_lost and any(row.verdict == "WORSE" for row in rows if row.model == model):
            save_problem(captured.problem, args.save_lost / f"peers_{model}.json")
        data: dict[str, Any] = {"peers": [{**asdict(row), "verdict": row.verdict} for row in rows]}
        write_json(args.json, {**data, "shares": [asdict(row) for row in shares]})
        print(model, "done", file=sys.stderr, flush=True)
    console = Console(width=None if sys.stdout.isatty() else 150)
    for table in (peers_table(rows), shares_table(shares)):
        if table.row_count:
            console.print(table)
    return 1 if any(row.verdict == "WORSE" for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())

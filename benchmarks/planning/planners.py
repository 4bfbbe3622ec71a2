"""The planner `auto` against its peers, the literature and the optimum, on instances and on real models.

python -m benchmarks.planning.planners [name ...] [--instances FOLDER] [--captures FOLDER] [--exact SECONDS] [--json F]

Names are those of the models of tests/support/zoo, of instance files, or "layered"; without any, all of them.
Instances are `graphopt.problem/1` files; what is not there is left out. `planner_tables.py` makes the
tables of docs/ from the JSON.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.common import write_json
from benchmarks.planning import peers, published
from benchmarks.planning.layered_graphs import layered_graph
from benchmarks.planning.planner_tables import MOST_OPS, print_tables, verdicts
from benchmarks.planning.subjects import subject
from graphopt.base.errors import GraphoptError
from graphopt.planners import Study, pareto_curve
from graphopt.planners.bounds.floor import floor_in_any_order
from graphopt.planners.bounds.lower_bound import lower_bound_seconds
from graphopt.problem.problem import Problem, load_problem
from graphopt.problem.schedule import simulate
from tests.support.zoo import ANCHORS, ZOO

INSTANCES = Path(__file__).parents[3] / "shared" / "instances"
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.35, 0.3, 0.25)
COLD_STARTS = 3
"""Of each problem whose time is held to a limit."""
LAYERED = ((100, 0), (250, 0), (500, 0), (1000, 0))
"""Nodes and seed of the generated graphs."""
MOST_EXACT_OPS, EXACT_SHARES = 200, (0.9, 0.8, 0.6)
"""Problems, and shares of eager's peak, for which the optimum is looked for."""


@dataclass
class Results:
    """All rows; plain data, as in the JSON."""

    problems: list[dict[str, Any]] = field(default_factory=list)
    peers: list[dict[str, Any]] = field(default_factory=list)
    published: list[dict[str, Any]] = field(default_factory=list)
    optima: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Curve:
    """`auto`'s curve of a problem, over the peak and the time of the problem's own order."""

    study: Study
    points: tuple[tuple[int, float], ...]
    eager_peak_bytes: int
    plan_seconds: float

    @property
    def problem(self) -> Problem:
        """The problem that it is of."""
        return self.study.problem

    def overhead_at(self, share: float) -> float | None:
        """The least extra time at a share of eager's peak; None where nothing fits."""
        fitting = [s for peak, s in self.points if peak <= share * self.eager_peak_bytes]
        return max(fitting[-1] / self.problem.seconds - 1, 0.0) if fitting else None

    def bound_at(self, share: float) -> float:
        """What no plan is below there, in any order."""
        return lower_bound_seconds(self.study, int(share * self.eager_peak_bytes)) / self.problem.seconds - 1


def plan(problem: Problem) -> Curve:
    """The curve, and its processor time: the least of some cold starts, as what shares a core only adds to it."""
    gc.collect()
    gc.freeze()  # a process of its own would not look through what this one holds
    taken = []
    for _ in range(COLD_STARTS if len(problem.ops) <= MOST_OPS else 1):
        study = Study(replace(problem))  # with nothing kept from the last one
        started = time.process_time()
        curve = pareto_curve(study)
        taken.append(time.process_time() - started)
    plan_seconds = min(taken)
    eager_peak_bytes = simulate(problem, range(len(problem.ops))).peak_bytes
    return Curve(study, tuple((p.peak_bytes, p.seconds) for p in curve), eager_peak_bytes, plan_seconds)


def problem_row(name: str, group: str, curve: Curve) -> dict[str, Any]:
    """One problem by itself: its minimum, plan time, and how far each sampled point may be from the optimum."""
    at_shares = {}
    for share in SHARES:
        overhead = curve.overhead_at(share)
        if overhead is not None:
            at_shares[f"{share:g}"] = {"auto": overhead, "bound": curve.bound_at(share)}
    return {
        "name": name,
        "group": group,
        "ops": len(curve.problem.ops),
        "eager_peak_bytes": curve.eager_peak_bytes,
        "minimum_bytes": curve.points[0][0],
        "minimum_overhead": curve.points[0][1] / curve.problem.seconds - 1,
        "floor_bytes": floor_in_any_order(curve.study),
        "plan_seconds": curve.plan_seconds,
        "points": len(curve.points),
        "shares": at_shares,
    }


def published_rows(figures: Sequence[published.Figure], name: str, curve: Curve) -> Iterator[dict[str, Any]]:
    """What others are said to reach on this problem, with `auto` at the same share."""
    for figure in figures:
        if figure.problem == name:
            ours = {"auto_overhead": curve.overhead_at(figure.share), "auto_seconds": curve.plan_seconds}
            yield {**asdict(figure), **ours}


def exact_rows(name: str, curve: Curve, limit_seconds: float) -> Iterator[dict[str, Any]]:
    """The solver's optimum where it finds one in time; nothing where the extra is missing."""
    if limit_seconds <= 0 or len(curve.problem.ops) > MOST_EXACT_OPS:
        return
    from graphopt.planners.exact import solve_exact

    for share in EXACT_SHARES:
        if not curve.overhead_at(share):
            continue
        started = time.monotonic()
        try:
            found = solve_exact(
                curve.study, int(share * curve.eager_peak_bytes), limit_seconds=limit_seconds, workers=1
            )
        except GraphoptError as error:
            print(f"{name}: no optimum at {share:g}: {error}", file=sys.stderr)
            return
        yield {
            "problem": name,
            "peer": "CP-SAT, fixed order",
            "share": share,
            "overhead": found.seconds / curve.problem.seconds - 1,
            "note": "proven" if found.proven else "not proven",
            "auto_overhead": curve.overhead_at(share),
            "solver_seconds": time.monotonic() - started,
            "auto_seconds": curve.plan_seconds,
        }


def add_model(results: Results, name: str, args: argparse.Namespace) -> None:
    """One captured model: by itself, against its peers and the optimum, and beside what is published of it."""
    model = subject(name, args.cost_model, args.captures)
    curve = plan(model.problem)
    results.problems.append(problem_row(name, "model", curve))
    results.optima += exact_rows(name, curve, args.exact)
    for row in peers.compare_all(model):
        results.peers.append({**asdict(row), "verdict": row.verdict})
    if any(figure.problem == name for figure in published.WITHOUT_GRADIENTS):
        results.published += published_rows(published.WITHOUT_GRADIENTS, name, plan(model.bare))


def add_problem(results: Results, name: str, group: str, problem: Problem, exact_seconds: float) -> None:
    """One bare problem: by itself, beside what is published of it, and against the optimum."""
    curve = plan(problem)
    results.problems.append(problem_row(name, group, curve))
    results.published += published_rows(published.ON_INSTANCES, name, curve)
    results.optima += published_rows(published.OPTIMA, name, curve)
    results.optima += exact_rows(name, curve, exact_seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--instances", type=Path, default=INSTANCES, metavar="FOLDER")
    parser.add_argument("--cost-model", default="auto")
    parser.add_argument(
        "--captures", type=Path, metavar="FOLDER", help="captured models are kept there, and taken from there"
    )
    parser.add_argument(
        "--exact", type=float, default=5.0, metavar="SECONDS", help="for a budget of a small problem (default 5)"
    )
    parser.add_argument("--json", type=Path, metavar="PATH")
    args = parser.parse_args()
    models = [name for name in (*ZOO, *ANCHORS) if name != "graph_break"]  # it is captured in two pieces
    files = {path.stem: path for path in sorted(args.instances.glob("*.json"))}
    results = Results()
    for name in args.names or [*files, "layered", *models]:
        started = time.process_time()
        if name in models:
            add_model(results, name, args)
        elif name == "layered":
            for nodes, seed in LAYERED:
                add_problem(results, f"layered {nodes}", "generated", layered_graph(nodes, seed), args.exact)
        elif name in files:
            add_problem(results, name, "instance", load_problem(files[name]), args.exact)
        else:
            parser.error(f"there is no {name!r}; there are {', '.join([*models, *files, 'layered'])}")
        print(f"{name}: {time.process_time() - started:.1f} s of processor time", file=sys.stderr, flush=True)
        write_json(args.json, {**asdict(results), "verdicts": verdicts(asdict(results))})
    print_tables(asdict(results))
    return 0 if all(verdict["holds"] for verdict in verdicts(asdict(results))) else 1


if __name__ == "__main__":
    sys.exit(main())

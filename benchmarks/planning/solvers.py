"""Which solver for the exact planner: CP-SAT and HiGHS on the same choices, each in a process of its own.

python -m benchmarks.planning.solvers [--limit SECONDS] [--json PATH] [PROBLEM.json ...]

Needs `ortools` and `highspy`, which cannot be imported into one process. Both decide, in a fixed order of
first runs, which ops run a second time, in which stage, and what stays from stage to stage: CP-SAT as
retention intervals (`graphopt.planners.retention.model`), HiGHS as yes and no for each op and stage (the same
choices, linear: Jain et al., Checkmate, MLSys 2020). "as used" is what the planner does with CP-SAT: started
from `auto`, with the redundant constraint at the dearest step (`exact_step`).

Processor seconds on 2 shared cores (`results/solvers_cpu_2026-11-21.json`); extra time proven, or `found > bound`
where 60 s of clock, of which others took their part, were not enough:

| | ops | share | CP-SAT | CP-SAT as used | HiGHS |
|---|---|---|---|---|---|
| VGG19 | 51 | .8 | 4.85 %, 0.4 | 2.76 %, 0.3 (three runs an op) | 4.85 %, 1.3 |
| U-Net (VGG) | 71 | .8 | 1.98 %, 0.5 | 1.98 %, 0.5 | 1.98 %, 4.3 |
| SegNet | 77 | .8 | 0.21 %, 0.9 | 0.21 %, 0.5 | 0.21 %, 4.8 |
| FCN8 | 73 | .8 | 0.14 %, 0.5 | 0.14 %, 0.3 | 0.14 %, 2.8 |
| random layered | 100 | .8 | 2.30 %, 0.9 | 2.30 %, 0.5 | 2.30 %, 18.5 |
| U-Net of the zoo | 165 | .8 | 8.11 % > 0, 21.5 | 5.16 %, 1.1 | 5.23 % > 5.10 %, 19.5 |
| ViT of the zoo | 179 | .8 | 2.33 % > 0, 37.6 | 1.41 %, 0.7 | 48.4 % > 1.22 %, 29.5 |

So: CP-SAT, and not without the constraint at the dearest step.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.planning.solvers_linear import solve_with_highs
from graphopt.planners import Study
from graphopt.planners.auto import in_order_curve
from graphopt.problem.problem import Problem, load_problem
from graphopt.problem.schedule import simulate

INSTANCES = Path(__file__).parents[3] / "shared" / "instances"
NAMES = ("checkmate_VGG19_train", "checkmate_vgg_unet_train", "checkmate_segnet_train", "checkmate_fcn_8_vgg_train")
SHARES = (0.9, 0.8)
SOLVERS = ("CP-SAT", "CP-SAT as used", "HiGHS")
PATIENCE_SECONDS = 120.0


def budget_of(problem: Problem, share: float) -> int:
    """A share of the peak of the problem's own order."""
    return int(share * simulate(problem, range(len(problem.ops))).peak_bytes)


def run_cp_sat(problem: Problem, budget_bytes: int, limit_seconds: float) -> dict[str, Any]:
    """The plain retention model from nothing."""
    from ortools.sat.python import cp_model

    from graphopt.planners.retention.model import PARTS, RetentionModel

    model = RetentionModel(problem, budget_bytes, dict.fromkeys(range(len(problem.ops)), 1))
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.max_time_in_seconds = limit_seconds
    status = solver.solve(model.model)
    found = status in (cp_model.OPTIMAL, cp_model.FEASIBLE)
    unit = 1 / PARTS
    return {
        "overhead": solver.objective_value * unit if found else None,
        "bound": solver.best_objective_bound * unit,
        "proven": status == cp_model.OPTIMAL,
    }


def run_as_used(problem: Problem, budget_bytes: int, limit_seconds: float) -> dict[str, Any]:
    """The planner `exact`, which starts from `auto` and lets an op run as often as it does there."""
    from graphopt.planners.exact import solve_exact

    found = solve_exact(problem, budget_bytes, limit_seconds=limit_seconds)
    return {
        "overhead": found.seconds / problem.seconds - 1,
        "bound": found.bound_seconds / problem.seconds - 1,
        "proven": found.proven,
    }


RUN = {"CP-SAT": run_cp_sat, "CP-SAT as used": run_as_used, "HiGHS": solve_with_highs}


def one(solver: str, path: str, share: float, limit_seconds: float) -> dict[str, Any]:
    """One solver on one problem at one share, in this process."""
    problem = load_problem(path)
    budget_bytes = budget_of(problem, share)
    started = time.process_time()
    fitting = [point for point in in_order_curve(Study(problem)) if point.peak_bytes <= budget_bytes]
    auto_seconds = time.process_time() - started
    started = time.process_time()
    row = RUN[solver](problem, budget_bytes, limit_seconds)
    return {
        "problem": Path(path).stem,
        "ops": len(problem.ops),
        "share": share,
        "solver": solver,
        **row,
        "solver_seconds": time.process_time() - started,
        "auto_overhead": fitting[-1].seconds / problem.seconds - 1 if fitting else None,
        "auto_seconds": auto_seconds,
    }


def apart(solver: str, path: str, share: float, limit_seconds: float) -> dict[str, Any]:
    """The same in a process of its own."""
    words = [
        sys.executable,
        "-m",
        "benchmarks.planning.solvers",
        "--limit",
        str(limit_seconds),
        "--one",
        solver,
        str(share),
        path,
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=limit_seconds + PATIENCE_SECONDS, check=True)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def percent(share: float | None) -> str:
    """A share in percent; a dash where there is none."""
    return "–" if share is None else f"{100 * share:.3f}"


def line(row: dict[str, Any]) -> str:
    """A row as text."""
    return (
        f"{row['problem']:26} {row['share']:.2f} {row['solver']:15} {percent(row['overhead']):>8} %"
        f"  bound {percent(row['bound']):>8} % {'proven' if row['proven'] else '':6} {row['solver_seconds']:7.2f} s"
        f"  auto {percent(row['auto_overhead']):>7} % {row['auto_seconds']:.2f} s"
    )


def main() -> None:
    """Print one line a solver, problem and share."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problems", nargs="*", help="problem files; the smaller instances without any")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds for each solver")
    parser.add_argument("--json", help="where to write the rows")
    parser.add_argument("--one", nargs=2, metavar=("SOLVER", "SHARE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.one[0], args.problems[0], float(args.one[1]), args.limit)))
        return
    paths = args.problems or [str(INSTANCES / f"{name}.json") for name in (*NAMES, "random_layered_n100")]
    rows = []
    for path in paths:
        for share in SHARES:
            for solver in SOLVERS:
                row = apart(solver, path, share, args.limit)
                rows.append(row)
                print(line(row), flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""How long the planner `auto` takes, cold, and in how much memory; how both grow from 1,000 ops to 100,000.

python -m benchmarks.planning.plan_time [problem.json ...] [--families transformer,residual] [--ops 1000,10000,100000]
    [--json out.json]

Families are those of benchmarks/planning/families.py. Each problem has a process of its own, so that its peak of
memory is its own too.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import resource
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.planning.families import FAMILIES, KIB
from graphopt.planners import Study, pareto_curve
from graphopt.planners.bounds.lower_bound import lower_bound_seconds
from graphopt.problem.problem import load_problem
from graphopt.problem.schedule import simulate

SHARES = (0.9, 0.7, 0.5, 0.4, 0.3, 0.2, 0.15, 0.1)
#: The share of the peak for which the lower bound is asked for, as `graphopt solve` does.
BOUND_SHARE = 0.5


def measure(name: str, source: int | Path) -> dict[str, object]:
    """CPU seconds to plan (other load does not count), peak memory, and the curve at fixed shares of the peak.

    `source` is about how many ops a problem of the family `name` is to have, or a problem's file.
    """
    problem = FAMILIES[name](source) if isinstance(source, int) else load_problem(source)
    study = Study(problem)
    begin = time.process_time()
    curve = pareto_curve(study)
    seconds = time.process_time() - begin
    peak = simulate(problem, range(len(problem.ops))).peak_bytes
    begin = time.process_time()
    lower_bound_seconds(study, max(curve[0].peak_bytes, int(BOUND_SHARE * peak)))
    bound_seconds = time.process_time() - begin
    overhead = {}
    for share in SHARES:
        fitting = [p.seconds for p in curve if p.peak_bytes <= share * peak]
        overhead[f"{share:.0%}"] = fitting[-1] / problem.seconds - 1 if fitting else None
    return {
        "name": name,
        "ops": len(problem.ops),
        "plan_seconds": seconds,
        "bound_seconds": bound_seconds,
        "minimum_share": curve[0].peak_bytes / peak,
        "points": len(curve),
        "peak_rss_mib": peak_rss_mib(),
        "overhead": overhead,
    }


def peak_rss_mib() -> float:
    """The most that this process had in memory; `ru_maxrss` would count what its parent had when it started it."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / KIB
    (line,) = (line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / KIB


def growth(rows: Sequence[dict[str, object]]) -> float:
    """Exponent e of seconds ~ ops^e between the smallest and the largest of several problems."""
    first, last = rows[0], rows[-1]
    ops = float(str(last["ops"])) / float(str(first["ops"]))
    seconds = float(str(last["plan_seconds"])) / float(str(first["plan_seconds"]))
    return math.log(seconds) / math.log(ops)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problems", nargs="*", type=Path)
    parser.add_argument("--families", default="transformer,residual", help=f"any of {', '.join(FAMILIES)}")
    parser.add_argument("--ops", default="1000,10000,100000")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    families = [name for name in arguments.families.split(",") if name]
    ops = [int(text) for text in arguments.ops.split(",") if text]
    jobs: list[tuple[str, int | Path]] = [(name, count) for name in families for count in ops]
    jobs += [(path.stem, path) for path in arguments.problems]
    print(
        f"{'problem':26}{'ops':>7}{'plan s':>9}{'bound s':>9}{'MiB':>6}{'minimum':>9}   overhead at a share of the peak"
    )
    rows: list[dict[str, object]] = []
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for job in jobs:
            rows.append(pool.apply(measure, job))
            print(_line(rows[-1]), flush=True)
    exponents = {}
    if len(ops) > 1:
        exponents = {name: growth([row for row in rows if row["name"] == name]) for name in families}
    for name, exponent in exponents.items():
        print(f"plan time of {name} grows as ops^{exponent:.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows, "growth_exponents": exponents}, indent=1), encoding="utf-8")


def _line(row: dict[str, object]) -> str:
    overhead = row["overhead"]
    assert isinstance(overhead, dict)
    cells = "  ".join(f"{k} {'-' if v is None else f'{v:.1%}'}" for k, v in overhead.items())
    times = f"{row['plan_seconds']:9.2f}{row['bound_seconds']:9.2f}"
    return f"{row['name']:26}{row['ops']:7}{times}{row['peak_rss_mib']:6.0f}{row['minimum_share']:9.3f}   {cells}"


if __name__ == "__main__":
    main()

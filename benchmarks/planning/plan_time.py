"""How long the planner `auto` takes, cold, and how that grows from 1,000 ops over 10,000 to 100,000.

python -m benchmarks.planning.plan_time [problem.json ...] [--layers 16,156,1562] [--json out.json]

Each problem has a process of its own, so that its peak of memory is its own too.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import resource
import time
from dataclasses import dataclass, field
from pathlib import Path

from graphopt.planners import pareto_curve
from graphopt.problem.problem import Op, Problem, Value, load_problem
from graphopt.problem.schedule import simulate

SHARES = (0.9, 0.7, 0.5, 0.4, 0.3, 0.2, 0.15, 0.1)
KIB = 1024


@dataclass
class _Builder:
    """Writes a training step op by op; times are those of a machine of 50 GFLOP/s and 10 GB/s."""

    values: list[Value] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)

    def value(self, size: int) -> int:
        self.values.append(Value(size))
        return len(self.values) - 1

    def op(self, name: str, reads: list[int], sizes: list[int], flops: float = 0.0, *, backward: bool) -> list[int]:
        out = [self.value(size) for size in sizes]
        moved = sum(sizes) + sum(self.values[v].bytes for v in set(reads))
        seconds = 2e-6 + max(flops / 5e10, moved / 1e10)
        self.ops.append(Op(name, seconds, 0, tuple(dict.fromkeys(reads)), tuple(out), backward))
        return out


def transformer(layers: int, width: int = 256, tokens: int = 1024, heads: int = 4, length: int = 256) -> Problem:
    """A GPT-like training step: 24 forward and 34 backward ops a block, weight gradients as outputs."""
    b = _Builder()
    wide, narrow = tokens * width * 4, tokens * 4
    tape: list[tuple[str, list[int], int, list[int]]] = []

    def forward(name: str, reads: list[int], sizes: list[int], flops: float = 0.0, weight: int = 0) -> list[int]:
        out = b.op(name, reads, sizes, flops, backward=False)
        tape.append((name, reads, weight, out))
        return out

    def linear(name: str, x: int, rows: int, columns: int) -> int:
        flops = 2.0 * tokens * rows * columns
        (flat,) = forward("clone", [x], [tokens * rows * 4])
        (y,) = forward(name, [flat], [tokens * columns * 4], flops, rows * columns * 4)
        return y

    (x,) = b.op("embedding", [], [wide], backward=False)
    scores = tokens * length * heads * 4
    for _ in range(layers):
        normed, *_ = forward("layer_norm", [x], [wide, narrow, narrow], weight=width * 8)
        q, k, v = (linear("mm", normed, width, width) for _ in range(3))
        (s,) = forward("bmm", [q, k], [scores], 2.0 * tokens * length * width)
        (scaled,) = forward("scale_mask", [s], [scores])
        (p,) = forward("softmax", [scaled], [scores])
        dropped, _ = forward("dropout", [p], [scores, scores // 4])
        (attended,) = forward("bmm", [dropped, v], [wide], 2.0 * tokens * length * width)
        projected = linear("mm", attended, width, width)
        noisy, _ = forward("dropout", [projected], [wide, wide // 4])
        (x,) = forward("add", [x, noisy], [wide])
        normed, *_ = forward("layer_norm", [x], [wide, narrow, narrow], weight=width * 8)
        hidden = linear("mm", normed, width, 4 * width)
        (active,) = forward("gelu", [hidden], [4 * wide])
        noisy, _ = forward("dropout", [linear("mm", active, 4 * width, width)], [wide, wide // 4])
        (x,) = forward("add", [x, noisy], [wide])
    (gradient,) = b.op("loss_boundary", [x], [wide], backward=True)
    b.outputs.append(x)
    _write_backward(b, tape, {x: gradient})
    return Problem(tuple(b.values), tuple(b.ops), tuple(b.outputs))


def _write_backward(b: _Builder, tape: list[tuple[str, list[int], int, list[int]]], gradient: dict[int, int]) -> None:
    """One or two backward ops for each forward op; gradients that meet are added."""

    def reach(value: int, new: int) -> None:
        if value in gradient:
            (new,) = b.op("add", [gradient[value], new], [b.values[value].bytes], backward=True)
        gradient[value] = new

    for name, reads, weight, out in reversed(tape):
        g, size = gradient[out[0]], [b.values[v].bytes for v in reads]
        if name == "mm":
            flops = 2.0 * weight / 4 * b.values[reads[0]].bytes / 4 / max(1, math.isqrt(weight // 4))
            reach(reads[0], b.op("mm_backward", [g], size, flops, backward=True)[0])
            b.outputs += b.op("weight_grad", [g, reads[0]], [weight], flops, backward=True)
            b.outputs += b.op("bias_grad", [g], [4 * KIB], backward=True)
        elif name == "bmm":
            for mine, other in (reads, reads[::-1]):
                reach(mine, b.op("bmm_backward", [g, other], [b.values[mine].bytes], 5e8, backward=True)[0])
        elif name == "layer_norm":
            got = b.op("layer_norm_backward", [g, reads[0], *out[1:]], [size[0], weight], backward=True)
            reach(reads[0], got[0])
            b.outputs.append(got[1])
        elif name == "add":
            for value in reads:
                reach(value, g)
        else:
            saved = {"gelu": reads, "softmax": out, "dropout": out[1:]}.get(name, [])
            reach(reads[0], b.op(f"{name}_backward", [g, *saved], size[:1], backward=True)[0])


def measure(name: str, source: int | Path) -> dict[str, object]:
    """CPU seconds to plan (other load does not count), peak memory, and the curve at fixed shares of the peak."""
    problem = transformer(source) if isinstance(source, int) else load_problem(source)
    begin = time.process_time()
    curve = pareto_curve(problem)
    seconds = time.process_time() - begin
    peak = simulate(problem, range(len(problem.ops))).peak_bytes
    overhead = {}
    for share in SHARES:
        fitting = [p.seconds for p in curve if p.peak_bytes <= share * peak]
        overhead[f"{share:.0%}"] = fitting[-1] / problem.seconds - 1 if fitting else None
    return {
        "name": name,
        "ops": len(problem.ops),
        "plan_seconds": seconds,
        "minimum_share": curve[0].peak_bytes / peak,
        "points": len(curve),
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / KIB,
        "overhead": overhead,
    }


def growth(rows: list[dict[str, object]]) -> float | None:
    """Exponent e of seconds ~ ops^e between the smallest and the largest problem."""
    first, last = rows[0], rows[-1]
    ops = float(str(last["ops"])) / float(str(first["ops"]))
    seconds = float(str(last["plan_seconds"])) / float(str(first["plan_seconds"]))
    return math.log(seconds) / math.log(ops) if ops != 1 else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problems", nargs="*", type=Path)
    parser.add_argument("--layers", default="16,156,1562")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    layers = [int(text) for text in arguments.layers.split(",") if text]
    jobs: list[tuple[str, int | Path]] = [(f"transformer-{n}", n) for n in layers]
    jobs += [(path.stem, path) for path in arguments.problems]
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        rows = pool.starmap(measure, jobs, chunksize=1)
    exponent = growth(rows[: len(layers)]) if len(layers) > 1 else None
    print(f"{'problem':26}{'ops':>7}{'seconds':>9}{'MiB':>6}{'minimum':>9}   overhead at a share of the peak")
    for row in rows:
        overhead = row["overhead"]
        assert isinstance(overhead, dict)
        cells = "  ".join(f"{k} {'-' if v is None else f'{v:.1%}'}" for k, v in overhead.items())
        figures = f"{row['ops']:7}{row['plan_seconds']:9.2f}{row['peak_rss_mib']:6.0f}{row['minimum_share']:9.3f}"
        print(f"{row['name']:26}{figures}   {cells}")
    if exponent is not None:
        print(f"plan time grows as ops^{exponent:.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows, "growth_exponent": exponent}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()

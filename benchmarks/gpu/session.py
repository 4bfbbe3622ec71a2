"""A visit to a GPU machine: tests and short benchmarks, each with its own time limit, most valuable first.

python -m benchmarks.gpu.session OUT [--limit 330] [--only NAME ...] [--device cuda]

Runs in the checkout's root with PYTHONPATH=. ; nothing need be installed but torch, triton, transformers, pytest and
pytest-xdist. What measures no time runs side by side first, then what does, one after the other. Whole outputs go to
files under OUT, and the end of this one's says what matters: failures, figures, tables.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ENVIRONMENT = {
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "2",
}
MATRIX = "gpt2 resnet50 t5 unet vit bert llama_sdpa convnext mixture_of_experts lstm autocast in_place"
#: Run again with blocks as PyTorch hands them out by default, up to 1 MiB larger than what was asked for.
DEFAULT_ALLOCATOR = "gpt2 resnet50 in_place"


@dataclass(frozen=True)
class Job:
    """A command, the file of its output, its time limit, and what of the output is shown."""

    name: str
    command: Sequence[str]
    limit_seconds: float
    shown: Callable[[str], Iterable[str]]
    alone: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


def jobs_of(out: Path, device: str) -> list[Job]:
    """All jobs, in order of value."""
    python = [sys.executable, "-W", "ignore"]
    tests = [f"tests/gpu/test_gpu_{name}.py" for name in ("kernels", "optimize", "train_step", "offload")]
    options = ["-n", "7", "-q", "--tb=short", "--show-capture=no", "-p", "no:cacheprovider", "--durations=8"]
    cells = [
        *python,
        "-m",
        "benchmarks.gpu.matrix",
        "--device",
        device,
        "--times",
        "8",
        "--rounds",
        "0",
        "--limit",
        "140",
    ]
    matrix = [*MATRIX.split(), "--workers", "6", "--json", f"{out}/matrix_cuda.json"]
    default = [*DEFAULT_ALLOCATOR.split(), "--workers", "1", "--json", f"{out}/matrix_cuda_default_allocator.json"]
    unset = {"PYTORCH_ALLOC_CONF": "expandable_segments:False"}
    timed = ["--device", device, "--rounds", "9"]
    headline = ["--device", device, "--limit", "95", "--inductor", "--json", f"{out}/headline_cuda.json"]
    compiled = ["gpt2", "llama", "resnet50", "--device", device, "--times", "8", "--rounds", "7"]
    compiled += ["--ratios", "0.1,0.5", "--shares", "1.0,0.5,0.35", "--json", f"{out}/compiled_cuda.json"]
    floor = ["--device", device, "--json", f"{out}/below_floor_cuda.json"]
    tail, kernels = out / "train_step_cuda.json", out / "compression_kernels_cuda.json"
    return [
        Job("tests", [*python, "-m", "pytest", *tests, *options], 145, failures),
        Job("matrix", [*cells, *matrix], 145, bad_cells),
        Job("default allocator", [*cells, *default], 145, bad_cells, environment=unset),
        Job("headline", [*python, "-m", "benchmarks.gpu.headline", *headline], 125, last(24), alone=True),
        Job("below the floor", [*python, "-m", "benchmarks.gpu.below_floor", *floor], 150, last(8), alone=True),
        Job("compiled", [*python, "-m", "benchmarks.compiled", *compiled], 200, last(60), alone=True),
        Job(
            "tail",
            [*python, "-m", "benchmarks.step.train_step", *timed, "--json", f"{tail}"],
            35,
            rows_of(tail),
            alone=True,
        ),
        Job(
            "kernels",
            [*python, "-m", "benchmarks.compression.kernels", *timed, "--json", f"{kernels}"],
            35,
            rows_of(kernels),
            alone=True,
        ),
    ]


def last(count: int) -> Callable[[str], list[str]]:
    return lambda text: [line[:190] for line in text.splitlines() if line.strip()][-count:]


def rows_of(path: Path) -> Callable[[str], list[str]]:
    """The rows that are in a file, and the end of the output where there are none."""

    def shown(text: str) -> list[str]:
        if not path.exists():
            return last(12)(text)
        lines = []
        for row in json.loads(path.read_text())["rows"]:
            what = row.get("setting") or row.get("work")
            ratio = row.get("speedup") or row.get("ratio")
            lines.append(f"{what[:42]:42} {row['contender'][:45]:45} {row['seconds'] * 1e3:9.3f} ms ×{ratio:.2f}")
        return [*lines, *last(2)(text)]

    return shown


def failures(text: str) -> list[str]:
    """The lines of pytest that say what failed and why, and its last ones."""
    lines = text.splitlines()
    kept = [line[:230] for line in lines if line.startswith(("E  ", "____"))]
    return [*kept[:70], *(line[:200] for line in lines[-12:])]


def bad_cells(text: str) -> list[str]:
    """What is not good, what fits closest, how long each model took, and the last line."""
    lines = [line[:230] for line in text.splitlines() if line.startswith(("BAD", "ok ")) and "BudgetError" not in line]
    bad = [line for line in lines if line.startswith("BAD")]
    least = [line for line in lines if " minimum " in line or "done in" in line]
    return [*bad[:20], *(line for line in least if line not in bad), *text.splitlines()[-1:]]


class Visit:
    """Runs jobs until the time is up."""

    def __init__(self, out: Path, limit_seconds: float, device: str) -> None:
        self.out, self.end = out, time.monotonic() + limit_seconds
        self.started = time.monotonic()
        root = Path(__file__).resolve().parents[2]
        self.environment = {
            **ENVIRONMENT,
            **os.environ,
            "PYTHONPATH": f"{root}:{os.environ.get('PYTHONPATH', '')}",
            "GRAPHOPT_FIGURES": str(out / "figures.jsonl"),
            "GRAPHOPT_GPU_TESTS_ON": device,
        }
        self.root = root
        self.shown: dict[str, list[str]] = {}

    def run(self, jobs: list[Job]) -> None:
        together = [job for job in jobs if not job.alone]
        threads = [threading.Thread(target=self.run_one, args=(job,)) for job in together]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for job in jobs:
            if job.alone:
                self.run_one(job)

    def run_one(self, job: Job) -> None:
        """Run a job to its end or its limit; its whole process group is ended then."""
        path = self.out / ("times.txt" if job.alone else f"{job.name.replace(' ', '_')}.txt")
        seconds = min(job.limit_seconds, self.end - time.monotonic())
        begun = time.monotonic() - self.started
        if seconds < 8:
            self.shown[job.name] = ["no time left"]
            return
        before = path.stat().st_size if path.exists() else 0
        with path.open("a") as file:
            process = subprocess.Popen(
                job.command,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=self.root,
                env={**self.environment, **job.environment},
                start_new_session=True,
            )
            try:
                code: Any = process.wait(seconds)
            except subprocess.TimeoutExpired:
                code = f"stopped after {seconds:.0f} s"
                _end(process)
        text = path.read_bytes()[before:].decode(errors="replace")
        taken = time.monotonic() - self.started
        header = f"=== {job.name}: exit {code}, from {begun:.0f} to {taken:.0f} s"
        self.shown[job.name] = [header, *job.shown(text)]
        print(header, flush=True)

    def show(self) -> None:
        """Everything, in at most 11,500 characters: the first jobs' failures, then figures, then tables."""
        figures = self.figures()
        parts = ["\n".join(lines) for lines in self.shown.values()]
        room = 11500 - sum(map(len, parts))
        print("\n".join([*parts, figures[: max(room, 1500)]]))

    def figures(self) -> str:
        """What the tests measured, a line each."""
        path = self.out / "figures.jsonl"
        if not path.exists():
            return "no figures"
        lines = []
        for line in path.read_text().splitlines():
            figure = json.loads(line)
            name = str(figure.pop("test")).partition("::test_")[2].partition(" (")[0]
            figure.pop("resident", None)
            figure.pop("verify", None)
            name = name.replace("_", " ")
            lines.append(f"{name[:70]} " + ", ".join(f"{key} {_short(value)}" for key, value in figure.items()))
        return "\n".join(sorted(lines))


def _end(process: subprocess.Popen[bytes]) -> None:
    """Let it say what it has (pytest its failures), then end it and all that it started."""
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(6)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)[:90]


def versions() -> str:
    code = (
        "import torch, transformers, triton; p = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else "
        "None; print(torch.__version__, transformers.__version__, triton.__version__, p and p.name, p and "
        "p.total_memory, torch.backends.cudnn.version(), torch.cuda.mem_get_info() if p else '')"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    return (done.stdout or done.stderr[-300:]).strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--limit", type=float, default=330, help="seconds for everything")
    parser.add_argument("--only", nargs="*", help="names of jobs")
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    visit = Visit(args.out, args.limit, args.device)
    print(versions(), flush=True)
    jobs = jobs_of(args.out, args.device)
    visit.run([job for job in jobs if not args.only or job.name in args.only])
    visit.show()
    return 0


if __name__ == "__main__":
    sys.exit(main())

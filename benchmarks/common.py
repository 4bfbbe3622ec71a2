"""What the benchmarks share: a zoo case as one training step, its captured graph, and results on disk."""

from __future__ import annotations

import argparse
import datetime
import json
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import graphopt
from graphopt.graph.captured_graph import CapturedGraph
from tests.support.zoo import ANCHORS, ZOO, Case

UNLIMITED_BYTES = 1 << 50


class LossModule(nn.Module):
    """A case's model that returns its loss alone: nothing but the loss is held between forward and backward."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.model = case.model
        self.case = case

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The scalar loss of one micro-batch."""
        return self.case.loss(self.model(*args, **kwargs))


def build_case(name: str) -> Case:
    """A fresh case of the zoo or of the anchors."""
    return (ZOO | ANCHORS)[name]()


def capture(name: str, cost_model: str = "auto") -> CapturedGraph:
    """The captured training step of a zoo model, priced; nothing of it is run but its ops, one by one."""
    torch._dynamo.reset()
    case = build_case(name)
    options: dict[str, Any] = {"planner": "none", "cost_model": cost_model}
    module = graphopt.optimize(
        LossModule(case), UNLIMITED_BYTES, example_inputs=case.args, example_kwargs=case.kwargs, **options
    )
    (planned,) = module.graphopt.in_force.planned  # type: ignore[union-attr]
    return planned.captured


def options_of_cases(description: str | None, cases: Collection[str], rounds: int) -> argparse.Namespace:
    """The command line of a benchmark of named cases: `only` these, so many `rounds`, and where its `json` goes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(cases), default=list(cases))
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def about(device: torch.device | str) -> dict[str, str]:
    """Where and when something is measured."""
    device = torch.device(device)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {"device": card, "torch": torch.__version__, "date": datetime.date.today().isoformat()}


def clock_of(device: torch.device | str, threads: int) -> Callable[[], float]:
    """Seconds: real ones, with what is queued on a GPU; on a CPU the process's own where it has one thread."""
    if torch.device(device).type == "cpu":
        return time.process_time if threads == 1 else time.perf_counter

    def synchronized() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return synchronized


def write_results(path: Path | None, device: torch.device | str, rows: Any) -> None:
    """Write rows with what they were measured on."""
    write_json(path, {**about(device), "rows": rows})


def write_json(path: Path | None, rows: Any) -> None:
    """Write `rows` in one piece, so that an interrupted run leaves the last whole version; nothing where no path is."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(path.suffix + ".partial")
    partial.write_text(json.dumps(rows, indent=1) + "\n")
    partial.replace(path)

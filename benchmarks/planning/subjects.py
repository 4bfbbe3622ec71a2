"""What planners are compared on: a captured model as a bare problem, with its peers' schedules; kept on disk.

Capturing and profiling a model takes minutes and planning it a second, so a folder of subjects is
planned again and again, by every state of the planners, at the same costs.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import capture, write_json
from benchmarks.planning.peer_schedules import checkpoint_every_block, pytorch_budget
from graphopt.base.errors import ScheduleError
from graphopt.graph.captured_graph import CapturedGraph
from graphopt.problem.problem import Problem, problem_from_json, problem_to_json
from graphopt.problem.schedule import Schedule, check_schedule

RATIOS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9, 1.0)


@dataclass(frozen=True)
class Peer:
    """What another tool would run."""

    peer: str
    setting: str
    schedule: Schedule


@dataclass(frozen=True)
class Subject:
    """One model: its problem, the order in which it was captured, its peers, and its outputs without gradients."""

    name: str
    problem: Problem
    captured_schedule: Schedule
    peers: tuple[Peer, ...]
    without_gradients: tuple[int, ...]

    @property
    def bare(self) -> Problem:
        """The problem where every gradient was allocated beforehand: one just made is added to it and gone."""
        return dataclasses.replace(self.problem, outputs=self.without_gradients)


def subject_of(captured: CapturedGraph, name: str) -> Subject:
    """A captured model with every peer's schedules; checkpointing only where the model has repeated blocks."""
    step = captured.step
    kept = tuple(value for value in captured.problem.outputs if step.values[value].kind != "gradients")
    return Subject(name, captured.problem, tuple(captured.captured_schedule), tuple(_peers(captured, name)), kept)


def _peers(captured: CapturedGraph, name: str) -> Iterator[Peer]:
    by_block = checkpoint_every_block(captured)
    if len(by_block) > len(captured.problem.ops):
        yield Peer("checkpoint", "every block", by_block)
    for ratio in RATIOS:
        try:
            yield Peer("PyTorch budget", f"{ratio:g}", pytorch_budget(captured, ratio))
        except (ScheduleError, AssertionError) as error:  # an assertion is PyTorch's own, in its partitioner
            print(f"{name}: left out, PyTorch's plan at {ratio:g} is none of a training step: {error}", file=sys.stderr)


def subject(name: str, cost_model: str = "auto", folder: Path | None = None) -> Subject:
    """The subject in `folder`; captured now, and kept there, where it is not."""
    path = folder / f"{name}.json" if folder is not None else None
    if path is not None and path.exists():
        return _read(name, path)
    found = subject_of(capture(name, cost_model), name)
    if path is not None:
        write_json(path, {**dataclasses.asdict(found), "problem": problem_to_json(found.problem)})
    return found


def _read(name: str, path: Path) -> Subject:
    data = json.loads(path.read_text(encoding="utf-8"))
    problem = problem_from_json(data["problem"])
    peers = [Peer(p["peer"], p["setting"], check_schedule(problem, p["schedule"])) for p in data["peers"]]
    order = check_schedule(problem, data["captured_schedule"])
    return Subject(name, problem, order, tuple(peers), tuple(data["without_gradients"]))

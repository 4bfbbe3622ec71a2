"""One plan for all processes: their graphs compared, the first one plans, the others take its plan over.

A process that fails says so instead of staying away, so that all of them raise and none waits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from graphopt.base import errors, records
from graphopt.base.errors import BudgetError, GraphoptError, InfeasibleError, RankError
from graphopt.device.messages import broadcast, gather
from graphopt.device.ranks import Ranks
from graphopt.graph.captured_graph import CapturedGraph
from graphopt.graph.step_graph import StepGraph, tensors_of
from graphopt.plan.choice import Choice
from graphopt.plan.graph_study import GraphStudy
from graphopt.plan.infeasible import budget_error
from graphopt.plan.mismatch import mismatch_error
from graphopt.plan.pipeline import plan_graph
from graphopt.plan.planned_graph import PlannedGraph
from graphopt.plan.prefetch import gathers_of
from graphopt.plan.room import Room
from graphopt.problem.plan import GraphPlan

_SCHEMA = "graphopt.agreement/1"


#: Plans graphs inside a room.
Make = Callable[[Room], Sequence[PlannedGraph]]


@dataclass(frozen=True)
class _Failure:
    """An error, for the others to raise."""

    kind: str
    message: str
    minimum_bytes: int
    drivers: tuple[str, ...]


@dataclass(frozen=True)
class _Word:
    """What a rank says first: its graphs, the same whatever the inputs' shapes, and its room; or why it has none."""

    graph_hashes: tuple[str, ...]
    program_hashes: tuple[str, ...]
    room: Room
    failure: _Failure | None


@dataclass(frozen=True)
class _Answer:
    """What the first rank planned."""

    graphs: tuple[GraphPlan, ...]
    failure: _Failure | None


def plan_as_one(
    ranks: Ranks | None,
    studies: Sequence[GraphStudy],
    room: Room,
    choice: Choice,
    make: Make,
    may_differ_in_shapes: bool = False,
) -> list[PlannedGraph]:
    """The same plan for the graphs on all ranks, by `make` on the first, in the room of the rank that has the least.

    A collective call, if there are ranks. Raises on all of them what one of them raises, and
    PlanMismatchError, naming the first op that differs, where they captured different graphs. With
    `may_differ_in_shapes`, ranks whose inputs only have other shapes plan each for itself.
    """
    if ranks is None:
        return list(make(room))
    hashes = tuple(study.graph.step.graph_hash for study in studies)
    words = _gathered(ranks, _Word(hashes, tuple(_hash_program(study.graph.step) for study in studies), room, None))
    _raise_first(words)
    odd = [rank for rank, word in enumerate(words) if word.graph_hashes != words[0].graph_hashes]
    if odd and may_differ_in_shapes and all(word.program_hashes == words[0].program_hashes for word in words):
        return _all_good(ranks, lambda: list(make(room)))
    if odd:
        raise mismatch_error(ranks, odd, [study.graph.step.graph_module for study in studies])
    tightest = min(range(ranks.world), key=lambda rank: words[rank].room.own_bytes)
    if ranks.rank == 0:
        return _lead(ranks, make, words[tightest].room, tightest)
    return _follow(ranks, studies, room, choice)


def give_up(ranks: Ranks | None, error: BaseException) -> None:
    """Stand in for `plan_as_one` on a rank that fails before it gets there; the others raise the error."""
    if ranks is not None:
        _gathered(ranks, _Word((), (), Room(0, {}), _failure(error)))


def raise_together(ranks: Ranks, error: BaseException | None) -> None:
    """Raise on all ranks what one of them ran into; `error` is this rank's own. A collective call."""
    words = _gathered(ranks, _Word((), (), Room(0, {}), None if error is None else _failure(error)))
    if error is not None:
        raise error
    _raise_first(words)


def _lead(ranks: Ranks, make: Make, room: Room, tightest: int) -> list[PlannedGraph]:
    try:
        planned = list(make(room))
        answer = _Answer(tuple(graph.plan for graph in planned), None)
    except Exception as error:
        failure = _failure(error, f"rank {tightest} has the least room: " if tightest else "")
        broadcast(ranks, _packed(_Answer((), failure)))
        if isinstance(error, GraphoptError):
            raise _error(failure) from None
        raise
    broadcast(ranks, _packed(answer))
    return _all_good(ranks, lambda: planned)


def _follow(ranks: Ranks, studies: Sequence[GraphStudy], room: Room, choice: Choice) -> list[PlannedGraph]:
    answer = records.from_bytes(broadcast(ranks, b""), _SCHEMA, "content", _Answer)
    if answer.failure is not None:
        raise _error(answer.failure)
    plans = zip(studies, answer.graphs, strict=True)
    return _all_good(ranks, lambda: [_taken_over(study.graph, plan, room, choice) for study, plan in plans])


def _taken_over(captured: CapturedGraph, plan: GraphPlan, room: Room, choice: Choice) -> PlannedGraph:
    """The first rank's plan for this rank's graph; another point of its curve where kernels take other bytes here.

    Where parameters are gathered there is no other point: all ranks take part in every gathering, in one order.
    """
    study = GraphStudy(captured, plan)  # in the pieces of the plan
    try:
        if gathers_of(study.graph) and study.kept_schedule is not None:
            own_bytes = study.peak_bytes(study.kept_schedule)
            if own_bytes > plan.budget_bytes:
                raise InfeasibleError(plan.budget_bytes, own_bytes)
        return plan_graph(study, plan.budget_bytes, choice)
    except InfeasibleError as error:
        least = error.minimum_bytes
        raise budget_error([study], least, room.budget_bytes, room.resident_bytes, plan.planner) from None


def _all_good(ranks: Ranks, make: Callable[[], list[PlannedGraph]]) -> list[PlannedGraph]:
    """What `make` plans, once every rank has a plan: nobody starts a step that another one will not join."""
    try:
        planned = make()
    except Exception as error:
        give_up(ranks, error)
        raise
    _raise_first(_gathered(ranks, _Word((), (), Room(0, {}), None)))
    return planned


def _hash_program(step: StepGraph) -> str:
    """What a graph does with its parameters, whatever the shapes of the inputs: ops in their order, and parameters."""
    lines = []
    for node in step.graph_module.graph.nodes:
        is_given = node.op == "placeholder" and node.name in step.static_inputs
        shapes = [tuple(tensor.shape) for tensor in tensors_of(node)] if is_given else ""
        lines.append(f"{node.op}|{node.target if node.op == 'call_function' else ''}|{shapes}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:32]


def _gathered(ranks: Ranks, word: _Word) -> list[_Word]:
    return [records.from_bytes(raw, _SCHEMA, "content", _Word) for raw in gather(ranks, _packed(word))]


def _raise_first(words: Sequence[_Word]) -> None:
    for rank, word in enumerate(words):
        if word.failure is not None:
            raise _error(replace(word.failure, message=f"rank {rank}: {word.failure.message}"))


def _packed(content: object) -> bytes:
    return records.to_text(_SCHEMA, "content", content).encode()


def _failure(error: BaseException, where: str = "") -> _Failure:
    minimum_bytes = error.minimum_bytes if isinstance(error, BudgetError) else 0
    drivers = error.drivers if isinstance(error, BudgetError) else ()
    kind = type(error).__name__
    message = str(error) if isinstance(error, GraphoptError) else f"{kind}: {error}"
    return _Failure(kind, where + message, minimum_bytes, drivers)


def _error(failure: _Failure) -> GraphoptError:
    if failure.kind == BudgetError.__name__:
        return BudgetError(failure.message, failure.minimum_bytes, failure.drivers)
    if failure.kind in (name.__name__ for name in (errors.CaptureError, errors.PlanMismatchError, errors.UsageError)):
        kind: type[GraphoptError] = getattr(errors, failure.kind)
        return kind(failure.message)
    return RankError(failure.message)

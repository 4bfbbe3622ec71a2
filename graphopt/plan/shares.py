"""One budget over several graphs: what a model that breaks into pieces gives to each of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from graphopt.base.errors import InfeasibleError
from graphopt.plan.graph_study import Candidate, GraphStudy
from graphopt.planners.curves.curve import pareto


@dataclass(frozen=True)
class _Point:
    """A schedule of one graph as the others see it; all in the graph's own bytes."""

    peak_bytes: int
    forward_peak_bytes: int
    saved_bytes: int
    backward_peak_bytes: int
    kept_bytes: int
    seconds: float


def share_budget(graphs: Sequence[GraphStudy], own_budget_bytes: int, planner: str = "auto") -> list[int]:
    """The bytes that each graph may use with this planner, so that all together stay in `own_budget_bytes`.

    Forwards run in order, backwards in reverse: while one graph runs, those before it hold what they
    saved, and those after it, in the backward, what they return. Starting from every graph's
    smallest schedule, the budget goes where it saves the most time for each byte of the common
    peak. Raises InfeasibleError where even the smallest do not fit.
    """
    candidates = [study.curve_by(planner) for study in graphs]
    curves = _kept_once(graphs, [_points(graph, curve) for graph, curve in zip(graphs, candidates, strict=True)])
    chosen = _chosen(curves, own_budget_bytes)
    seconds = _seconds([curve[i] for curve, i in zip(curves, chosen, strict=True)])
    shares = [curve[i].peak_bytes for curve, i in zip(candidates, chosen, strict=True)]
    return _kept_shares(graphs, own_budget_bytes, seconds) or shares


@dataclass(frozen=True)
class JointPoint:
    """Several graphs with a schedule each: their common peak, and their seconds together."""

    peak_bytes: int
    seconds: float


def joint_curve(graphs: Sequence[GraphStudy], budgets: int) -> tuple[JointPoint, ...]:
    """What shares give at so many budgets, evenly apart from the least to eager's: peaks increase, seconds decrease."""
    curves = _kept_once(graphs, [_points(graph, graph.curve) for graph in graphs])
    least = _peak(curves, [0] * len(curves))
    most = joint_peak_bytes(graphs, [study.graph.captured_schedule for study in graphs])
    found = []
    for i in range(budgets):
        chosen = _chosen(curves, least + max(most - least, 0) * i // (budgets - 1))
        points = [curve[place] for curve, place in zip(curves, chosen, strict=True)]
        found.append(JointPoint(_peak(curves, chosen), _seconds(points)))
    return pareto(found)


def joint_peak_bytes(graphs: Sequence[GraphStudy], schedules: Sequence[Sequence[int]]) -> int:
    """Peak of the graphs run with these schedules, one after the other and back."""
    points = [[_point(graph, schedule)] for graph, schedule in zip(graphs, schedules, strict=True)]
    return _peak(_kept_once(graphs, points), [0] * len(points))


@dataclass(frozen=True)
class Turn:
    """The forward or the backward of one of several graphs, by its place among them.

    `held_bytes` is what the others hold meanwhile; behind its backward a graph keeps `kept_bytes`.
    """

    place: int
    is_backward: bool
    held_bytes: int
    kept_bytes: int


def turns(graphs: Sequence[GraphStudy], schedules: Sequence[Sequence[int]]) -> tuple[Turn, ...]:
    """Forwards and backwards of graphs with these schedules, in the order in which they run."""
    curves = _kept_once(graphs, [[_point(graph, each)] for graph, each in zip(graphs, schedules, strict=True)])
    points = [curve[0] for curve in curves]
    places = (*range(len(points)), *reversed(range(len(points))))
    return tuple(
        Turn(place, is_backward, held_bytes, points[place].kept_bytes)
        for place, (_, is_backward, held_bytes) in zip(places, _in_turn(points), strict=True)
    )


def beside_bytes(graphs: Sequence[GraphStudy], schedules: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """For each graph what the others hold while its forward runs, and while its backward does."""
    held = {(turn.place, turn.is_backward): turn.held_bytes for turn in turns(graphs, schedules)}
    return [(held[place, False], held[place, True]) for place in range(len(graphs))]


def smallest_peak_bytes(graphs: Sequence[GraphStudy]) -> int:
    """The least common peak: every graph at its smallest."""
    return joint_peak_bytes(graphs, [_least_schedule(graph) for graph in graphs])


def _least_schedule(graph: GraphStudy) -> Sequence[int]:
    return graph.curve[0].schedule


def peak_bytes_of_alike(graph: GraphStudy, schedule: Sequence[int], count: int) -> int:
    """Peak of one graph whose forward runs `count` times, and then its backward as often."""
    return _peak(_kept_once([graph] * count, [[_point(graph, schedule)]] * count), [0] * count)


def saved_bytes(graph: GraphStudy, schedule: Sequence[int]) -> int:
    """What a graph holds between its forward and its backward."""
    return _point(graph, schedule).saved_bytes


def _kept_shares(graphs: Sequence[GraphStudy], own_budget_bytes: int, seconds: float) -> list[int]:
    """The shares of a kept plan where its schedules fit and nothing faster is known; else none.

    What is kept of the curves is thin: new shares of it at the plan's own budget could be slower.
    """
    points = [_point(graph, graph.kept_schedule) for graph in graphs if graph.kept_schedule is not None]
    if len(points) < len(graphs) or _seconds(points) > seconds:
        return []
    fits = _peak([[point] for point in points], [0] * len(points)) <= own_budget_bytes
    return [graph.kept.budget_bytes for graph in graphs if graph.kept] if fits else []


def _seconds(points: Sequence[_Point]) -> float:
    return math.fsum(point.seconds for point in points)


def _chosen(curves: Sequence[Sequence[_Point]], own_budget_bytes: int) -> list[int]:
    """For each graph the point of its curve that it gets."""
    chosen = [0] * len(curves)
    least = _peak(curves, chosen)
    if least > own_budget_bytes:
        raise InfeasibleError(own_budget_bytes, least)
    while (best := _best_step(curves, chosen, own_budget_bytes)) is not None:
        chosen[best[0]] = best[1]
    return chosen


def _kept_once(graphs: Sequence[GraphStudy], curves: Sequence[Sequence[_Point]]) -> list[Sequence[_Point]]:
    """A graph that runs again keeps one set of gradients: autograd adds those of an earlier run to the later run's."""
    again = [graph in graphs[i + 1 :] for i, graph in enumerate(graphs)]
    return [
        [replace(point, kept_bytes=0) for point in curve] if is_again else curve
        for curve, is_again in zip(curves, again, strict=True)
    ]


def _points(graph: GraphStudy, curve: Sequence[Candidate]) -> list[_Point]:
    return [_point(graph, candidate.schedule) for candidate in curve]


def _point(study: GraphStudy, schedule: Sequence[int]) -> _Point:
    simulation = study.simulated(tuple(schedule))
    live = simulation.live_bytes
    boundary = list(schedule).index(study.graph.step.boundary)
    kept = sum(study.graph.problem.values[value].bytes for value in study.graph.problem.outputs)
    return _Point(
        peak_bytes=int(live.max()),
        forward_peak_bytes=int(live[: boundary + 1].max()),
        saved_bytes=int(live[boundary]),
        backward_peak_bytes=int(live[boundary:].max()),
        kept_bytes=kept,
        seconds=simulation.seconds,
    )


def _peak(curves: Sequence[Sequence[_Point]], chosen: Sequence[int]) -> int:
    points = [curve[i] for curve, i in zip(curves, chosen, strict=True)]
    peak = 0
    for point, is_backward, held_bytes in _in_turn(points):
        peak = max(peak, held_bytes + (point.backward_peak_bytes if is_backward else point.forward_peak_bytes))
    return peak


def _in_turn(points: Sequence[_Point]) -> Iterator[tuple[_Point, bool, int]]:
    """Forwards in order and backwards in reverse: whether it is one of these, and what the others hold meanwhile."""
    held_bytes = 0
    for point in points:
        yield point, False, held_bytes
        held_bytes += point.saved_bytes
    for point in reversed(points):
        held_bytes -= point.saved_bytes
        yield point, True, held_bytes
        held_bytes += point.kept_bytes


def _best_step(curves: Sequence[Sequence[_Point]], chosen: Sequence[int], budget: int) -> tuple[int, int] | None:
    """The graph and the point of its curve that save the most seconds per byte of the common peak."""
    now = _peak(curves, chosen)
    best: tuple[float, tuple[int, int]] | None = None
    for graph, curve in enumerate(curves):
        for candidate in range(chosen[graph] + 1, len(curve)):
            saved = curve[chosen[graph]].seconds - curve[candidate].seconds
            peak = _peak(curves, [*chosen[:graph], candidate, *chosen[graph + 1 :]])
            if saved > 0 and peak <= budget:
                score = saved / max(peak - now, 1)
                if best is None or score > best[0]:
                    best = (score, (graph, candidate))
    return best[1] if best else None

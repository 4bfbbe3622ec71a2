"""GraphStudy: what is derived from a captured graph in order to plan it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from graphopt.base.errors import InfeasibleError, PlanMismatchError, ScheduleError
from graphopt.emit.late_writers import settle
from graphopt.graph.captured_graph import NO_FORMS, CapturedGraph
from graphopt.graph.transfers import fetch_ops, graph_with_transfers
from graphopt.kernels.offload.link import DepotLink
from graphopt.plan.choice import Choice
from graphopt.plan.generator_states import most_generator_state_bytes, with_generator_states
from graphopt.plan.in_proportion import in_proportion
from graphopt.plan.kept_curves import keep_curve, kept_curve
from graphopt.plan.offload.candidates import fetch_seconds
from graphopt.plan.schedule_pool import MOST_ADDED, SchedulePool
from graphopt.planners import PLANNERS, Study, pareto_curve
from graphopt.planners.curves.curve import pareto
from graphopt.planners.native.arrays import Ints
from graphopt.problem.pieces import WHOLE, Pieces
from graphopt.problem.plan import GraphPlan
from graphopt.problem.problem import Value
from graphopt.problem.runs import schedule_of, thinned
from graphopt.problem.schedule import Schedule, Simulation, check_schedule, simulate

#: Budgets at which a named planner is asked where several graphs share one: some take seconds for each.
_ASKED = 8


@dataclass(frozen=True)
class Candidate:
    """One schedule of a graph; `peak_bytes` counts the generator states that it keeps."""

    peak_bytes: int
    seconds: float
    planner: str
    schedule: Schedule


class GraphStudy:
    """A captured graph and all that is derived from it, each thing made once, when it is first asked for.

    With a `kept` plan the graph is planned already: its curve is the plan's. A `pool` has what is planned for the
    graph at other sizes. Of a form in pieces `origin` is the study of the whole. With `is_reordered` sums may be added
    up in another order.
    """

    def __init__(
        self,
        graph: CapturedGraph,
        kept: GraphPlan | None = None,
        pool: SchedulePool | None = None,
        origin: GraphStudy | None = None,
        *,
        is_reordered: bool = False,
    ) -> None:
        self.graph = graph if kept is None else _as_kept(graph, kept)
        self.kept = kept
        self.pool = pool
        self.origin = origin or self
        self.is_reordered = is_reordered
        self._forms: dict[Pieces, GraphStudy] = {}
        self._moving: dict[tuple[DepotLink, float], GraphStudy | None] = {}
        self._as_if: dict[int, GraphStudy] = {}

    def reordered(self) -> GraphStudy:
        """The same graph, were sums added up in another order."""
        return GraphStudy(self.graph, is_reordered=True)

    @property
    def forms(self) -> Sequence[Pieces]:
        """In which pieces it may be planned, beside as it is."""
        return self.graph.forms.every if self.is_reordered and self.kept is None else ()

    def form(self, pieces: Pieces) -> GraphStudy:
        """The graph in these pieces; as it is where it cannot be divided into so many."""
        if pieces == WHOLE or pieces not in self.graph.forms.every or self.kept is not None:
            return self.origin
        if self.origin is not self:
            return self.origin.form(pieces)
        if pieces not in self._forms:
            self._forms[pieces] = GraphStudy(self.graph.form(pieces), origin=self, is_reordered=self.is_reordered)
        return self._forms[pieces]

    def as_if_in(self, count: int) -> GraphStudy:
        """What the graph would be in so many pieces, with smaller values and all else as it is: a guess.

        It is made in milliseconds, where a form is rewritten and profiled.
        """
        if count not in self._as_if:
            problem = in_proportion(self.graph, count)
            self._as_if[count] = GraphStudy(replace(self.graph, problem=problem, forms=NO_FORMS))
        return self._as_if[count]

    def as_in(self, other: GraphStudy, choice: Choice) -> GraphStudy:
        """The graph in the form that another one is in."""
        form = self.form(other.graph.pieces)
        if choice.offload is None or not other.graph.moved:
            return form
        return form.moving(choice.offload.link, 1.0) or form

    def moving(self, link: DepotLink, share: float) -> GraphStudy | None:
        """The same form, where values may be moved over a link; `share` of a transfer's time is counted.

        None where nothing of it is worth moving, or where it serves several sizes.
        """
        if (link, share) not in self._moving:
            seconds = {} if self.graph.step.has_changing_sizes else fetch_seconds(self.graph, link, share)
            graph = graph_with_transfers(self.graph, sorted(seconds), seconds) if seconds else None
            found = GraphStudy(graph, origin=self.origin, is_reordered=self.is_reordered) if graph else None
            self._moving[link, share] = found
        return self._moving[link, share]

    @cached_property
    def free_seconds(self) -> float:
        """What the problem counts for values that are handed on, which takes no time."""
        return math.fsum(self.graph.problem.ops[op].seconds for op in fetch_ops(self.graph.step))

    @cached_property
    def planned(self) -> Study:
        """The graph's problem and what planners find out about it, whichever are asked and for however many budgets."""
        return Study(self.graph.problem)

    @cached_property
    def eager(self) -> Simulation:
        """Every op once, in the captured order."""
        found = simulate(self.graph.problem, self.graph.captured_schedule)
        return replace(found, seconds=found.seconds - self.free_seconds) if self.graph.moved else found

    @cached_property
    def curve(self) -> tuple[Candidate, ...]:
        """The whole memory/time curve, the kept plan's or else `auto`'s: peaks increase, seconds strictly decrease."""
        if self.kept:
            found = self._kept_candidates(self.kept)
        elif self.pool is None:
            found = self._new_candidates()
        else:
            found = self._pooled_candidates(self.pool)
        none = self._candidate(
            self.eager.seconds + self.free_seconds, "none", self.graph.captured_schedule, self.eager.peak_bytes
        )
        return pareto([*found, none])

    @cached_property
    def frugal(self) -> tuple[Candidate, ...]:
        """Schedules that may keep less from the forward for the backward than those of the curve at a like peak.

        They are the curve of the same graph with gradients of no bytes: where gradients make most of the peak, nothing
        else tells the planners to keep little. Peaks are the true ones, in no order.
        """
        pairs = zip(self.graph.step.values, self.graph.problem.values, strict=True)
        values = [Value(0) if info.kind == "gradients" else value for info, value in pairs]
        points = pareto_curve(replace(self.graph.problem, values=tuple(values)))
        return tuple(
            self._candidate(p.seconds, p.planner, p.schedule, simulate(self.graph.problem, p.schedule).peak_bytes)
            for p in points
        )

    @cached_property
    def kept_schedule(self) -> Schedule | None:
        """The schedule of the kept plan; raises PlanMismatchError where it is none of this graph's."""
        return self._checked(self.kept.schedule) if self.kept else None

    @cached_property
    def most_state_bytes(self) -> int:
        """The most that generator states can take, were every random op recomputed."""
        return most_generator_state_bytes(self.graph)

    @property
    def minimum_bytes(self) -> int:
        """The least bytes of its own in which the graph runs."""
        return self.curve[0].peak_bytes

    def peak_bytes(self, schedule: Schedule) -> int:
        """The peak of a schedule, generator states counted."""
        return self.simulated(schedule).peak_bytes

    def simulated(self, schedule: Schedule) -> Simulation:
        """A schedule's bytes at each step, generator states counted, and its seconds."""
        return self._simulated(schedule, np.array(schedule, dtype=np.int64))

    def forget_derived(self) -> None:
        """Let go of all that can be made again: much more than the graph itself."""
        for name in ("planned", "curve", "frugal", "eager"):
            self.__dict__.pop(name, None)
        self._forms.clear()
        self._moving.clear()
        self._as_if.clear()

    def _simulated(self, schedule: Schedule, steps: Ints) -> Simulation:
        live_bytes, _, seconds = self.planned.loops.profile(steps)
        return Simulation(with_generator_states(self.graph, schedule, live_bytes), seconds - self.free_seconds)

    def fastest(self, budget_bytes: int) -> Candidate:
        """The fastest of the curve that fits; raises InfeasibleError where none does."""
        fitting = self._fitting(budget_bytes)
        if not fitting:
            raise InfeasibleError(budget_bytes, self.minimum_bytes)
        if self.pool is None:
            return fitting[-1]
        alike = (c for c in fitting if self.pool.is_as_good(c.schedule, c.seconds, fitting[-1].seconds))
        return min(alike, key=lambda candidate: candidate.seconds, default=fitting[-1])

    def curve_by(self, planner: str) -> tuple[Candidate, ...]:
        """The curve of one planner; `peak_bytes` are then those to ask it for, of which a schedule may need less.

        Only `auto` has a whole curve: others are asked for their least, for eager's peak, and evenly between.
        """
        if planner == "auto" or self.kept:
            return self.curve
        eager = Candidate(self.eager.peak_bytes, self.eager.seconds, "none", self.graph.captured_schedule)
        try:
            self.schedule_by(planner, 0)
            least = 0
        except InfeasibleError as error:
            least = error.minimum_bytes
        budgets = [least + (eager.peak_bytes - least) * i // (_ASKED - 1) for i in range(_ASKED - 1)]
        return pareto([eager, *(c for budget in budgets for c in self._asked(planner, budget))])

    def schedule_by(self, planner: str, budget_bytes: int) -> Schedule:
        """What a planner makes of the graph in a budget, generator states counted; eager's order where it fits.

        Raises InfeasibleError, with the least that the planner needs.
        """
        if self.eager.peak_bytes <= budget_bytes:
            return self.graph.captured_schedule
        try:
            return PLANNERS[planner](self.planned, budget_bytes - self.most_state_bytes)
        except InfeasibleError as error:
            least = min(error.minimum_bytes + self.most_state_bytes, self.eager.peak_bytes)
            raise InfeasibleError(budget_bytes, least) from None

    def _asked(self, planner: str, budget_bytes: int) -> Iterable[Candidate]:
        try:
            schedule = settle(self.graph.step, self.schedule_by(planner, budget_bytes))
        except InfeasibleError:
            return
        yield Candidate(budget_bytes, simulate(self.graph.problem, schedule).seconds, planner, schedule)

    def _fitting(self, budget_bytes: int) -> list[Candidate]:
        """Those of the curve that fit; planners are asked at this very size before there are none."""
        fitting = [candidate for candidate in self.curve if candidate.peak_bytes <= budget_bytes]
        if not fitting and self.pool is not None and not self.kept and not self.pool.is_planned(self.eager.peak_bytes):
            self._plan_for(self.pool)
            del self.curve
            return self._fitting(budget_bytes)
        return fitting

    def _pooled_candidates(self, pool: SchedulePool) -> Iterable[Candidate]:
        if not pool.is_near(self.eager.peak_bytes):
            self._plan_for(pool)
        for planner, schedule, steps in pool.planned:
            found = self._simulated(schedule, steps)
            yield Candidate(found.peak_bytes, found.seconds, planner, schedule)

    def _plan_for(self, pool: SchedulePool) -> None:
        """Ask the planners at this size."""
        curve = thinned(pareto(self._new_candidates()), MOST_ADDED)
        pool.add(self.eager.peak_bytes, [(candidate.planner, candidate.schedule) for candidate in curve])

    def _new_candidates(self) -> Iterable[Candidate]:
        problem = self.graph.problem
        kept = kept_curve(problem)
        if kept:
            return [self._kept_candidate(planner, schedule) for planner, schedule in kept]
        points = pareto_curve(self.planned)
        keep_curve(problem, ((point.planner, point.schedule) for point in points))
        return [self._candidate(p.seconds, p.planner, p.schedule, p.peak_bytes) for p in points]

    def _kept_candidate(self, planner: str, schedule: Schedule) -> Candidate:
        """As the simulator judges it, whose sums of seconds are exact; its loop over steps is the compiled one."""
        ops, steps = self.graph.problem.ops, np.array(schedule, dtype=np.int64)
        seconds = math.fsum(ops[op].seconds for op in schedule)
        return self._candidate(seconds, planner, schedule, self.planned.loops.profile(steps)[1])

    def _kept_candidates(self, kept: GraphPlan) -> Iterable[Candidate]:
        """The kept points, their bytes as simulated today; times keep their ratio to eager's, which noise would not."""
        scale = self.eager.seconds / kept.eager_seconds if kept.eager_seconds else 1.0
        points = [(kept.seconds, kept.planner, kept.schedule)]
        points += [(point.seconds, point.planner, schedule_of(point.runs)) for point in kept.curve]
        for seconds, planner, steps in points:
            schedule = self._checked(steps)
            yield Candidate(self.peak_bytes(schedule), seconds * scale, planner, schedule)

    def _checked(self, schedule: Schedule) -> Schedule:
        try:
            return check_schedule(self.graph.problem, schedule)
        except ScheduleError as error:
            raise PlanMismatchError(f"the plan's schedule for {self.graph.name!r} is not valid: {error}") from None

    def _candidate(self, seconds: float, planner: str, schedule: Schedule, peak_bytes: int) -> Candidate:
        step = self.graph.step
        if step.late_writers:
            schedule = settle(step, schedule)
        if step.late_writers or self.most_state_bytes:
            peak_bytes = self.peak_bytes(schedule)
        return Candidate(peak_bytes, seconds - self.free_seconds, planner, schedule)


def _as_kept(graph: CapturedGraph, kept: GraphPlan) -> CapturedGraph:
    """The form of a graph that a kept plan is of."""
    form = graph.form(kept.pieces)
    if not kept.moved:
        return form
    return graph_with_transfers(form, kept.moved, dict(zip(kept.moved, kept.fetch_seconds, strict=True)))


def studied(graph: CapturedGraph, choice: Choice) -> GraphStudy:
    """A graph to be planned as `choice` says; raises PlanMismatchError where kept plans are given and none is its."""
    return GraphStudy(graph, choice.kept_plan_of(graph), is_reordered=choice.numerics == "reordered")

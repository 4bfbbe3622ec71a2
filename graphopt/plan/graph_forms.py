"""One graph in closed form: what its schedules take, at all sizes of its inputs that the capture serves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import sympy
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from graphopt.cost_models import COST_MODELS
from graphopt.cost_models.at_sizes import CostsBySize, costs_by_size
from graphopt.cost_models.polynomials import LEAST_SIZE, Form, Rows, value_at
from graphopt.cost_models.symbolic import Names, SymbolicBytes, symbolic_bytes
from graphopt.cost_models.symbolic_costs import flops_form, sizes_to_look_at, symbols_at, with_scratch
from graphopt.emit.late_writers import settle
from graphopt.graph.at_sizes import AtSizes
from graphopt.graph.captured_graph import CapturedGraph
from graphopt.graph.symbols import shape_env
from graphopt.plan.choice import Choice
from graphopt.plan.generator_states import with_generator_states
from graphopt.plan.graph_study import GraphStudy
from graphopt.plan.schedule_pool import MOST_ADDED
from graphopt.planners import pareto_curve
from graphopt.problem.problem import Problem, Value
from graphopt.problem.runs import thinned
from graphopt.problem.schedule import Schedule

#: Beyond any size of an input.
NO_LIMIT = 2**31


class GraphForms:
    """The closed forms of one captured graph; `names` says what its symbols are called, more than one perhaps alike.

    `sizes` are those of the capture, by name, and `ranges` those that it serves.
    """

    def __init__(self, study: GraphStudy, choice: Choice, names: Names) -> None:
        self.graph: CapturedGraph = study.graph
        self.names = names
        self.sizes, self.ranges, self._asked = _known_of(shape_env(self.graph.step), names)
        self._study, self._choice = study, choice

    @cached_property
    def bytes(self) -> SymbolicBytes:
        """What values and ops take, with all that ops were seen to take where they can be run."""
        graph = self.graph
        known = symbolic_bytes(graph.step, graph.problem, self.names)
        return with_scratch(known, graph.step, self.costs, self.names, self._looked_at) if self.costs.runs else known

    @cached_property
    def flops(self) -> Form:
        """Floating-point operations of a step in which nothing is computed twice."""
        return flops_form(self.costs, self.names, self.bytes.terms, self._looked_at)

    @cached_property
    def schedules(self) -> list[Schedule]:
        """What planners were asked for at the sizes of the capture, the smallest first, and the captured one."""
        curve = [candidate.schedule for candidate in self._study.curve]
        return list(dict.fromkeys((*curve, self.graph.captured_schedule)))

    def peak(self, schedule: Schedule) -> Form:
        """The highest number of bytes alive, generator states counted."""
        nothing = np.zeros(len(schedule), dtype=np.int64)
        return self.bytes.peak(schedule, with_generator_states(self.graph, schedule, nothing))

    def of_kind(self, kind: str) -> Form:
        """What all values of a kind take together."""
        return self.bytes.total(lambda number: self.graph.step.values[number].kind == kind)

    def refusal(self, sizes: Mapping[str, int]) -> str:
        """Why the capture does not serve these sizes; "" where it does."""
        for name, (low, high) in self.ranges.items():
            if not low <= sizes[name] <= high:
                most = f"to {high}" if high < NO_LIMIT else "on"
                return f"{name} {sizes[name]}: the graph that was captured serves those from {low} {most}"
        at = symbols_at(self.names, sizes)
        broken = next((text for guard, text in self._asked if not guard.xreplace(at)), "")
        return f"{sizes}: the graph that was captured serves sizes where {broken}" if broken else ""

    def seconds(self, sizes: Mapping[str, int]) -> npt.NDArray[np.float64]:
        """Of each op, as they follow from those of the capture."""
        priced = iter(self.costs.seconds_at(AtSizes(symbols_at(self.names, sizes))))
        return np.array([next(priced) if op.node is not None else 0.0 for op in self.graph.step.ops])

    def plan_at(self, sizes: Mapping[str, int]) -> list[Schedule]:
        """What planners make of the graph at these sizes, which from now on counts at all of them."""
        step = self.graph.step
        curve = thinned(pareto_curve(self.problem(sizes)), MOST_ADDED)
        found = [settle(step, point.schedule) if step.late_writers else point.schedule for point in curve]
        known = set(self.schedules)
        self.schedules.extend(schedule for schedule in dict.fromkeys(found) if schedule not in known)
        return found

    def problem(self, sizes: Mapping[str, int]) -> Problem:
        """The planner's problem at these sizes."""
        known, problem = self.bytes, self.graph.problem
        at = np.array([value_at(term, sizes) for term in known.terms], dtype=np.int64)
        workspaces, seconds = (known.workspaces @ at).tolist(), self.seconds(sizes).tolist()
        prices = zip(problem.ops, seconds, workspaces, strict=True)
        ops = tuple(replace(op, seconds=time, workspace_bytes=size) for op, time, size in prices)
        return replace(problem, values=tuple(map(Value, (known.values @ at).tolist())), ops=ops)

    @cached_property
    def costs(self) -> CostsBySize:
        """What ops cost: at the sizes of the capture, and as it follows at others."""
        nodes = self.graph.step.compute_nodes
        return costs_by_size(nodes, COST_MODELS[self._choice.cost_model](nodes))

    @cached_property
    def _looked_at(self) -> list[dict[str, int]]:
        return [sizes for sizes in sizes_to_look_at(self.sizes, self.ranges) if not self.refusal(sizes)]


def runs_by_op(schedules: Sequence[Schedule], ops: int) -> Rows:
    """How often each schedule runs each op: a row for each schedule."""
    return np.array([np.bincount(schedule, minlength=ops) for schedule in schedules], dtype=np.int64)


def _known_of(
    env: ShapeEnv, names: Names
) -> tuple[dict[str, int], dict[str, tuple[int, int]], list[tuple[sympy.Basic, str]]]:
    """Sizes of the capture, ranges, and what else is asked of sizes, with words for it."""
    sizes: dict[str, int] = {}
    ranges: dict[str, tuple[int, int]] = {}
    for symbol, name in names.items():
        sizes[name] = int(env.backed_var_to_val[symbol])
        known = env.var_to_range[symbol]
        low, high = ranges.get(name, (LEAST_SIZE, NO_LIMIT))
        lower = int(known.lower)
        # Dynamo takes a size of 1 for a constant, so that a symbol begins at 2
        ranges[name] = max(low, lower if lower > 2 else LEAST_SIZE), int(min(high, known.upper))
    asked = [(env.replace(guard.expr), guard) for guard in env.guards]
    named = {symbol: sympy.Symbol(name) for symbol, name in names.items()}
    texts = {guard: str(guard.xreplace(named)) for guard, _ in asked if guard.free_symbols <= names.keys()}
    return sizes, ranges, [(guard, text) for guard, text in texts.items() if guard.free_symbols]

"""Choice: how the user wants graphs to be planned."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from graphopt.base.errors import PlanMismatchError, UsageError
from graphopt.cost_models import COST_MODELS
from graphopt.graph.captured_graph import CapturedGraph
from graphopt.lower.compiler import Compiler, check_compiler
from graphopt.plan.numerics import Numerics, check_numerics
from graphopt.plan.offload.where import Offload
from graphopt.planners import PLANNERS
from graphopt.problem.pieces import WHOLE
from graphopt.problem.plan import GraphPlan


@dataclass(frozen=True)
class Choice:
    """How to plan: planner and cost model by name, seconds to search for better, kept plans by hash, kernels, bits.

    `offload` is where values may be moved to.
    """

    planner: str = "auto"
    cost_model: str = "auto"
    kept: Mapping[str, GraphPlan] | None = None
    plan_seconds: float = 0.0
    compiler: Compiler = "eager"
    numerics: Numerics = "bitwise"
    offload: Offload | None = None

    def __post_init__(self) -> None:
        for kind, name, known in (("planner", self.planner, PLANNERS), ("cost model", self.cost_model, COST_MODELS)):
            if name not in known:
                raise UsageError(f"unknown {kind} {name!r}; choose one of {', '.join(known)}")
        check_compiler(self.compiler)
        check_numerics(self.numerics, self.compiler)
        if self.offload is not None and self.compiler != "eager":
            raise UsageError(f"offload= does not go with compiler={self.compiler!r} yet")
        if not 0 <= self.plan_seconds < math.inf:
            raise UsageError(f"plan_seconds: expected a number of seconds, 0 or more, got {self.plan_seconds!r}")

    def kept_plan_of(self, graph: CapturedGraph) -> GraphPlan | None:
        """The kept plan for this graph, None where none were given; raises PlanMismatchError where none is for it."""
        if self.kept is None:
            return None
        kept = self.kept.get(graph.step.graph_hash)
        if kept is None:
            raise PlanMismatchError(
                f"the plan was made for another graph: {graph.name!r} has hash {graph.step.graph_hash}, the plan "
                f"knows {', '.join(self.kept)}; plan again with the model, shapes and torch version of this run"
            )
        if kept.pieces != WHOLE and kept.pieces not in graph.forms.every:
            raise PlanMismatchError(f"the plan runs {graph.name!r} in {kept.pieces}, and this graph has no such form")
        if kept.moved and self.offload is None:
            raise PlanMismatchError(
                f"the plan moves values of {graph.name!r} out of memory: give offload= as it was given when it was made"
            )
        if kept.moved and not _can_move(kept, graph):
            raise PlanMismatchError(f"the plan moves values that {graph.name!r} does not have")
        if kept.pieces != WHOLE and self.numerics != "reordered":
            raise PlanMismatchError(
                f"the plan runs {graph.name!r} in {kept.pieces}, which adds up in another order than eager: "
                "numerics='reordered' allows that"
            )
        return kept


def _can_move(kept: GraphPlan, graph: CapturedGraph) -> bool:
    step, moved = graph.form(kept.pieces).step, kept.moved
    ops = range(step.boundary)
    are_ops = all(op in ops and step.ops[op].node is not None for op in moved)
    return are_ops and list(moved) == sorted(set(moved)) and len(moved) == len(kept.fetch_seconds)

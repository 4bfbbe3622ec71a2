"""What one of Dynamo's graphs is planned by: as it returns gradients or adds them, at each size of its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import sympy

from graphopt.graph.captured_graph import CapturedGraph
from graphopt.plan.choice import Choice
from graphopt.plan.found_scratch import SearchedGraph
from graphopt.plan.graph_study import GraphStudy
from graphopt.plan.other_sizes import GraphAtSizes
from graphopt.plan.planned_graph import PlannedGraph
from graphopt.problem.schedule import Schedule

#: Studies that are kept of one graph with all that was derived from them; others are kept without, by their plans.
_MOST_STUDIES = 8


@dataclass(eq=False)
class Studies:
    """The studies of one graph, None where it needs no gradient; `captured_sizes` are the sizes of its capture."""

    captured_sizes: Mapping[sympy.Symbol, int]
    loss_bytes: int = 0
    _graphs: dict[bool, GraphAtSizes | None] = field(default_factory=dict)
    _known: dict[tuple[bool, tuple[int, ...]], GraphStudy] = field(default_factory=dict)

    def has(self, adds: bool) -> bool:
        """Whether the graph was captured that adds its gradients to others, or that which returns them."""
        return adds in self._graphs

    def captured(self, adds: bool, graph: CapturedGraph | None, choice: Choice) -> None:
        """It was captured, perhaps once more."""
        known = self._graphs.get(adds)
        if graph is None:
            self._graphs[adds] = None
        elif known is None or known.graph.step.graph_hash != graph.step.graph_hash:
            self._graphs[adds] = GraphAtSizes(graph, self.captured_sizes, choice)
            self._known = {key: study for key, study in self._known.items() if key[0] is not adds}

    def at(self, adds: bool, sizes: Mapping[sympy.Symbol, int]) -> GraphStudy | None:
        """The study at these sizes of the inputs; None where there is no gradient."""
        graph = self._graphs[adds]
        if graph is None:
            return None
        key = (adds, tuple(sizes[symbol] for symbol in self.captured_sizes))
        study = self._known.pop(key, None) or graph.study(sizes, self.loss_bytes)
        self._known[key] = study
        while len(self._known) > _MOST_STUDIES:
            self._known.pop(next(iter(self._known))).forget_derived()
        return study

    def searched(self, adds: bool, sizes: Mapping[sympy.Symbol, int], planned: PlannedGraph) -> SearchedGraph | None:
        """The graph at these sizes as it is planned, to look for what its ops take; None where it is known no more."""
        graph = self.graph(adds)
        if graph is None:
            return None
        return SearchedGraph(graph, planned, lambda: self._found(adds, sizes), self._known.clear)

    def graph(self, adds: bool) -> GraphAtSizes | None:
        """The graph as it was captured; None where it needs no gradient, or is known no more."""
        return self._graphs.get(adds)

    def _found(self, adds: bool, sizes: Mapping[sympy.Symbol, int]) -> GraphStudy:
        study = self.at(adds, sizes)
        assert study is not None
        return study

    def at_hand(self, adds: bool) -> dict[Schedule, None]:
        """The schedules for which there is code, where the graph serves several sizes: others are not kept."""
        graph = self._graphs.get(adds)
        return {} if graph is None or graph.pool is None else graph.pool.at_hand

    def serves(self, adds: bool, schedule: Schedule, sizes: Mapping[str, int]) -> None:
        """A schedule was chosen for these sizes of inputs, by name."""
        graph = self._graphs.get(adds)
        if graph is not None and graph.pool is not None:
            graph.pool.serves(schedule, sizes)

    def with_loss(self, loss_bytes: int) -> None:
        """From now on a loss outside of the graph takes so many bytes."""
        self.loss_bytes = loss_bytes
        self._known.clear()

    def clear(self) -> None:
        """What is known of it is no longer so."""
        self._graphs.clear()
        self._known.clear()

"""What a call of the model is for: to meet its graphs, to plan them only, or to run them.

Each phase owns what is true in it, lives as long as one call, and says two things: what happens when Dynamo
captures a new graph, and what happens where a graph is called.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from graphopt.base.errors import BudgetError
from graphopt.run.graphs.call_key import CallKey
from graphopt.run.graphs.dynamo_graph import DynamoGraph
from graphopt.run.graphs.meeting_graphs import WrittenInputs

logger = logging.getLogger(__name__)


class Outcome(Enum):
    """How a call ended."""

    FINISHED = auto()
    #: It came to a graph that cannot be planned before the others are known.
    UNPLANNED = auto()
    #: It came to a planned graph, and running it was not asked for.
    PLANNED = auto()


class _CallEnds(BaseException):
    """Takes a call out of the model's own code, which may catch every Exception; it leaves `called` as a value."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.name)
        self.outcome = outcome


def called(call: Callable[[], Any]) -> tuple[Outcome, Any]:
    """Call the model; how that ended, and what it returned where it is finished."""
    try:
        return Outcome.FINISHED, call()
    except _CallEnds as end:
        return end.outcome, None


@dataclass(eq=False)
class Meeting:
    """Graphs are run with nothing kept, only to meet all of them: `met` has them in order, one may come twice."""

    met: list[DynamoGraph] = field(default_factory=list)
    written: WrittenInputs = field(default_factory=WrittenInputs)
    #: Runs a graph, where what is in graphs is measured.
    around: Callable[[Callable[[], Any]], Any] = lambda run: run()

    def on_new(self, graph: DynamoGraph) -> None:
        """It waits for the others."""

    def on_call(self, graph: DynamoGraph, args: tuple[Any, ...]) -> Any:
        """Note that it is called, and run it with nothing kept for a backward."""
        self.met.append(graph)
        self.written.keep([args[position] for position in graph.writes])
        return self.around(lambda: graph.run_only_to_meet(args))


@dataclass(eq=False)
class Planning:
    """Graphs are planned as far as each is the whole model, and none is run."""

    key: CallKey
    plan_whole: Callable[[DynamoGraph], None]
    written: WrittenInputs = field(default_factory=WrittenInputs)
    _planned_one: bool = False

    def on_new(self, graph: DynamoGraph) -> None:
        """Plan it now if it is the whole model."""
        # a second graph in one call means that the first was not the whole model either
        if graph.is_whole_model and not self._planned_one:
            self.plan_whole(graph)
            self._planned_one = True

    def on_call(self, graph: DynamoGraph, _args: tuple[Any, ...]) -> Any:
        """End the call: none is run."""
        raise _CallEnds(Outcome.PLANNED if self.key in graph.compiled else Outcome.UNPLANNED)


@dataclass(eq=False)
class Running:
    """Planned graphs are run, and new ones are planned as in `planning`."""

    planning: Planning
    #: Plans a graph in the place of another one of the same call; None where the call has no plan of several graphs.
    plan_piece: Callable[[DynamoGraph, int], None] | None
    #: Whether calls like this one are planned already.
    known: bool = False
    #: A call of several graphs may come to one without a plan when others have run; one graph alone has none before it.
    written: WrittenInputs = field(default_factory=WrittenInputs)
    _ran: int = 0

    def on_new(self, graph: DynamoGraph) -> None:
        """Plan it now if it is the whole model, or what a part of it has become."""
        if self.plan_piece is not None:
            self.plan_piece(graph, self._ran)
        elif not self._ran:
            self.planning.on_new(graph)

    def on_call(self, graph: DynamoGraph, args: tuple[Any, ...]) -> Any:
        """Run it as it is planned; end the call where it has no plan."""
        compiled = graph.compiled.get(self.planning.key)
        if compiled is None and self.plan_piece is None and not self._ran and graph.is_whole_model:
            self.planning.on_new(graph)  # it was met before, in other circumstances
            compiled = graph.compiled.get(self.planning.key)
        if compiled is None:
            raise _CallEnds(Outcome.UNPLANNED)
        if self.known and graph.has_other_tangents(self.planning.key):
            self._plan_anew(graph)
            compiled = graph.compiled[self.planning.key]
        if self.plan_piece is not None:
            self.written.keep([args[position] for position in graph.writes])
        self._ran += compiled.emitted is not None
        return graph.train(self.planning.key, args)

    def _plan_anew(self, graph: DynamoGraph) -> None:
        """Plan it for the tangents that came; where there is no plan for these, the one that it has stays."""
        try:
            if self.plan_piece is not None:
                self.plan_piece(graph, self._ran)
            else:
                self.planning.plan_whole(graph)
        except BudgetError as error:
            graph.keeps_tangents(self.planning.key)
            what = str(error).splitlines()[0]
            logger.warning(
                "%s: no plan for all outputs whose gradients came, so the one it has stays: %s", graph.name, what
            )


Phase = Meeting | Planning | Running

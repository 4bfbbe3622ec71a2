"""One of Dynamo's graphs in a session: first met, then planned and compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from graphopt.capture.aot import Captured, compile_graph
from graphopt.plan.captured import CapturedGraph, PlannedGraph

if TYPE_CHECKING:
    from graphopt.run.session import Session

Compiled = Callable[..., Any]


class MeetGraphs(Exception):
    """A graph was reached that cannot be planned before the others are known."""


class OnlyPlan(Exception):
    """The graph is planned, and running it was not asked for."""


@dataclass(eq=False)
class Slot:
    """One of Dynamo's graphs: first met, then planned and compiled."""

    session: Session
    module: fx.GraphModule
    example_inputs: Sequence[Any]
    tracing: Any
    name: str
    compiled: Compiled | None = None

    def __call__(self, *args: Any) -> Any:
        if self.session.meeting:
            self.session.met.append(self)
            return _run_without_gradients(self.module, args)
        if self.compiled is None:
            raise MeetGraphs
        if self.session.only_plan:
            raise OnlyPlan
        return self.compiled(*args)

    def compile(self, decide: Callable[[CapturedGraph], PlannedGraph]) -> None:
        with torch._guards.tracing(self.tracing):
            self.compiled = compile_graph(
                self.module, self.example_inputs, self.session.request.choice, decide, self.name
            )

    def capture(self) -> CapturedGraph | None:
        """The joint graph, not yet planned; None where the graph needs no gradient."""

        def stop(captured: CapturedGraph) -> PlannedGraph:
            raise Captured(captured)

        try:
            self.compile(stop)
        except Captured as done:
            return done.graph
        return None


def _run_without_gradients(module: fx.GraphModule, args: Sequence[Any]) -> Any:
    """Run one of Dynamo's graphs; its outputs say that they need gradients where they would."""
    with torch.no_grad():
        results = module(*args)
    (returned,) = module.graph.output_node().args
    marked = []
    for node, result in zip(returned, results, strict=True):  # type: ignore[arg-type]
        example = node.meta.get("example_value") if isinstance(node, fx.Node) else None
        needs = isinstance(example, torch.Tensor) and example.requires_grad
        marked.append(result.detach().requires_grad_() if needs and isinstance(result, torch.Tensor) else result)
    return tuple(marked)

"""Part: a module that shares a budget with others, as its session sees whoever plans all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from graphopt.plan.graph_study import GraphStudy
from graphopt.problem.schedule import Schedule


class Part(Protocol):
    """Says what is planned for a module, and is told when it runs. No watch of its own measures the module then."""

    def schedule_of(self, study: GraphStudy) -> Schedule:
        """What is planned for the module's graph, at these sizes of its inputs."""

    def arrives(self) -> None:
        """The module is called, before FSDP2 gathers its parameters."""

    def departs(self) -> None:
        """The module has run, and FSDP2 has freed what it gathered."""

    def around_forward(self, run: Callable[[list[Any]], Any], args: list[Any]) -> Any:
        """Run its forward graph."""

    def around_backward(self, run: Callable[[list[Any]], Any], args: list[Any]) -> Any:
        """Run its backward graph."""

    def ran(self, study: GraphStudy, schedule: Schedule) -> None:
        """Its call was run by this plan."""

"""The backward of one graph, for whichever tangents come."""

from __future__ import annotations

import logging
from typing import Any

from torch import fx

from graphopt.emit.emit import boxed
from graphopt.graph.joint import is_tangent
from graphopt.graph.roles import DESCRIPTOR, UNDEFINED, Accumulator
from graphopt.passes.joint.undefined_tangents import drop_undefined

logger = logging.getLogger(__name__)


class BackwardModules:
    """An emitted backward, and what is made of it for other tangents: undefined ones are None among its arguments.

    `module` is for the tangents that were `planned`. `whole` is for all of them, and returns all gradients; None where
    `module` does both. What other tangents need is made once, from the smaller of the two that has it all.
    """

    def __init__(self, module: fx.GraphModule, whole: fx.GraphModule | None, name: str) -> None:
        self.module, self.whole, self._name = module, whole, name
        inputs = module.graph.find_nodes(op="placeholder")
        tangents = [node for node in inputs if is_tangent(node)]
        self._positions = [inputs.index(node) for node in tangents]
        self.planned = frozenset(i for i, node in enumerate(tangents) if not node.meta.get(UNDEFINED))
        # what stands behind the tangents is added to in place
        self._adds = any(isinstance(node.meta.get(DESCRIPTOR), Accumulator) for node in inputs)
        self._made: dict[frozenset[int], fx.GraphModule] = {self.planned: module}

    def defined(self, args: list[Any]) -> frozenset[int]:
        """The tangents that are among these arguments."""
        return frozenset(i for i, position in enumerate(self._positions) if args[position] is not None)

    def of(self, defined: frozenset[int]) -> fx.GraphModule:
        """The backward for these tangents, of which there must be some."""
        if defined not in self._made:
            self._made[defined] = self._make(defined)
        return self._made[defined]

    def is_within_plan(self, defined: frozenset[int]) -> bool:
        """Whether the backward for these tangents is a part of the planned one."""
        return defined <= self.planned and not self._adds

    def no_gradients(self) -> list[None]:
        """What the backward gives where no tangent is defined."""
        (returned,) = self.module.graph.output_node().args
        return [None] * len(returned)  # type: ignore[arg-type]

    def _make(self, defined: frozenset[int]) -> fx.GraphModule:
        if self.is_within_plan(defined):
            return _without(self.module, defined)
        assert self.whole is not None, "a backward that has all tangents does not know one of them"
        if not defined <= self.planned:
            logger.warning(
                "backward() of %s got gradients of %s, for which it was not planned: all that is missing was made "
                "again, and this call's peak may be above the plan",
                self._name,
                ", ".join(_output_names(self.whole, defined - self.planned)),
            )
        return _without(self.whole, defined)


def _without(module: fx.GraphModule, defined: frozenset[int]) -> fx.GraphModule:
    """A backward with these tangents alone: it takes the same inputs."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    tangents = [node for node in graph.find_nodes(op="placeholder") if is_tangent(node)]
    late = {node for node in graph.nodes if node.op == "call_function"}
    drop_undefined(graph, [node for i, node in enumerate(tangents) if i not in defined], late)
    return boxed(module, graph)


def _output_names(module: fx.GraphModule, positions: frozenset[int]) -> list[str]:
    tangents = [node for node in module.graph.find_nodes(op="placeholder") if is_tangent(node)]
    found = []
    for position in sorted(positions):
        output = getattr(tangents[position].meta.get(DESCRIPTOR), "output", None)
        index = getattr(output, "idx", None)
        found.append(str(tangents[position]) if index is None else f"output {index}")
    return found

"""JointGraph: AOTAutograd's graph of forward and backward, and which of its inputs and outputs is what."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from types import NoneType
from typing import Any, TypeGuard

from torch import fx
from torch._functorch._aot_autograd.descriptors import (
    AOTInput,
    GradAOTOutput,
    SubclassGetAttrAOTInput,
    SubclassGetAttrAOTOutput,
)
from torch._library.fake_class_registry import FakeScriptObject

from graphopt.graph.roles import DESCRIPTOR, UNDEFINED

_IN_BACKWARD = ("is_backward", "must_be_in_backward")


@dataclass(frozen=True)
class JointGraph:
    """The graph of one micro-batch's forward and backward, as AOTAutograd traces it and passes edit it.

    It takes primals, tangents and what passes added, and returns `num_forward_outputs` outputs of the
    forward and then a gradient, or None, for each primal. This is a view: everything is read from
    `module` when it is asked for.
    """

    module: fx.GraphModule
    num_forward_outputs: int

    @property
    def graph(self) -> fx.Graph:
        """The fx graph behind it."""
        return self.module.graph

    @property
    def primals(self) -> tuple[fx.Node, ...]:
        """Inputs of the forward: parameters, buffers and the batch, in AOTAutograd's order."""
        return tuple(node for node in self._placeholders if not is_tangent(node) and not _is_added(node))

    @property
    def tangents(self) -> tuple[fx.Node, ...]:
        """Inputs of the backward: gradients of the forward's outputs."""
        return tuple(node for node in self._placeholders if is_tangent(node))

    @property
    def defined_tangents(self) -> tuple[fx.Node, ...]:
        """The tangents that arrive when the backward runs as it is expected to."""
        return tuple(node for node in self.tangents if not node.meta.get(UNDEFINED))

    @property
    def added(self) -> tuple[fx.Node, ...]:
        """Inputs that passes added, described by `graphopt.graph.roles`; they stand behind all others."""
        return tuple(node for node in self._placeholders if _is_added(node))

    @property
    def outputs(self) -> tuple[object, ...]:
        """What the graph returns, node or constant: the forward's outputs, then the gradients."""
        (returned,) = self.graph.output_node().args
        return tuple(returned) if isinstance(returned, (list, tuple)) else (returned,)

    @property
    def forward_outputs(self) -> tuple[object, ...]:
        """What the forward returns, node or constant."""
        return self.outputs[: self.num_forward_outputs]

    @property
    def backward_outputs(self) -> tuple[object, ...]:
        """What the backward returns: a gradient or None for each primal, in their order, which `places` says."""
        return self.outputs[self.num_forward_outputs :]

    @property
    def gradients(self) -> dict[int, fx.Node]:
        """Position among the primals -> its gradient, where one is returned: a tensor, or a shard of one."""
        pairs = zip(self.places, self.backward_outputs, strict=True)
        return {place: node for place, node in pairs if place is not None and _is_gradient(node)}

    @property
    def places(self) -> tuple[int | None, ...]:
        """For each thing that the backward returns the position of its primal; None where there is no such.

        A DTensor is two primals, its shard and its mesh, and so is its gradient; one that gets none has a single None
        in their place. So AOTAutograd's descriptors tell, and the order only where it describes nothing.
        """
        described, count = self.graph.output_node().meta.get("desc"), len(self.backward_outputs)
        primals = {node.meta.get(DESCRIPTOR): position for position, node in enumerate(self.primals)}
        has_parts = any(isinstance(each, SubclassGetAttrAOTInput) for each in primals)
        if described is None or (not has_parts and count == len(self.primals)):
            return tuple(range(count))
        return tuple(primals.get(_whose(each)) for each in described[self.num_forward_outputs :])

    def set_gradients(self, gradients: dict[int, fx.Node]) -> None:
        """Let the backward return these gradients, by the position of their primal, and None for all others.

        What is no tensor stays: autograd puts a DTensor together from it.
        """
        returned = [
            node
            if isinstance(node, fx.Node) and not _is_gradient(node)
            else gradients.get(place if place is not None else -1)
            for place, node in zip(self.places, self.backward_outputs, strict=True)
        ]
        outputs: Any = (*self.forward_outputs, *returned)
        self.graph.output_node().args = (outputs,)

    def backward_nodes(self) -> set[fx.Node]:
        """The nodes that run after the loss: tagged so by AOTAutograd or by a pass, or reading one that does.

        Nodes of a user's own `autograd.Function.backward` carry no tag; what they read tells.
        """
        found: set[fx.Node] = set(self.tangents)
        for node in self.graph.nodes:
            if node.op == "call_function" and (
                node.meta.get("partitioner_tag") in _IN_BACKWARD or not found.isdisjoint(node.all_input_nodes)
            ):
                found.add(node)
        return found.difference(self.tangents)

    @property
    def _placeholders(self) -> Iterable[fx.Node]:
        return self.graph.find_nodes(op="placeholder")


def copy_joint(joint: JointGraph) -> JointGraph:
    """The same graph once more: nodes of its own under the same names, constants shared."""
    graph = fx.Graph()
    outputs = graph.graph_copy(joint.graph, {})
    graph.output(outputs)
    graph.output_node().meta = dict(joint.graph.output_node().meta)
    assert [node.name for node in graph.nodes] == [node.name for node in joint.graph.nodes], "a copy has other names"
    # AOTAutograd's class writes code where somebody calls it, which for a graph that is still changed nobody does;
    # the first of a graph module's classes is its own alone
    kind: type[fx.GraphModule] = type(joint.module).__mro__[1]
    return JointGraph(kind(joint.module, graph), joint.num_forward_outputs)


def _is_gradient(node: object) -> TypeGuard[fx.Node]:
    return isinstance(node, fx.Node) and not isinstance(node.meta.get("val"), FakeScriptObject)


def _whose(returned: object) -> AOTInput | None:
    """Whose gradient it is that is described so; None where nothing is returned, or no gradient."""
    match returned:
        case GradAOTOutput(grad_of):
            return grad_of
        case SubclassGetAttrAOTOutput(GradAOTOutput(grad_of), str() as attribute):
            return SubclassGetAttrAOTInput(grad_of, attribute)
    return None


def is_tangent(node: fx.Node) -> bool:
    """True for a placeholder of a gradient that comes from outside."""
    return "tangents" in str(node.target)


def _is_added(node: fx.Node) -> bool:
    return not isinstance(node.meta.get(DESCRIPTOR), (AOTInput, NoneType))

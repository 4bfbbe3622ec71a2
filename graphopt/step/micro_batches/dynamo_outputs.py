"""What Dynamo's graph of a training step returns: the loss, and beside it what the model's Python state takes over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from graphopt.base.errors import CaptureError, UsageError
from graphopt.graph.nodes import source_line

#: Gives what stands beside the loss, from the graph's inputs.
BesideLoss = Callable[[Sequence[Any]], list[Any]]


def beside_loss(module: fx.GraphModule) -> BesideLoss:
    """How to come by what Dynamo's graph returns beside the loss: inputs that the forward writes in place, and numbers.

    Raises UsageError for a loss that is no single number, CaptureError where a tensor that is computed leaves the step.
    """
    (returned,) = module.graph.output_node().args
    assert isinstance(returned, (tuple, list))
    _check_loss(returned[0])
    inputs = module.graph.find_nodes(op="placeholder")
    position = {id(node.meta["example_value"]): i for i, node in enumerate(inputs)}
    numbers = _computed_from_numbers(module.graph)
    sources: list[int | fx.Node] = []
    for node in returned[1:]:
        assert isinstance(node, fx.Node)
        known = position.get(id(node.meta["example_value"]))
        if known is None and node not in numbers:
            where = source_line(node)
            raise CaptureError(
                f"the model keeps a tensor that it computes{' at ' + where if where else ''} (in an attribute, a list "
                "or a closure): a training step returns its loss alone, so remove it, or use graphopt.optimize()"
            )
        sources.append(node if known is None else known)
    made = _alone(module, [node for node in sources if isinstance(node, fx.Node)])

    def beside(flat: Sequence[Any]) -> list[Any]:
        computed = iter(made(*flat))
        return [flat[source] if isinstance(source, int) else next(computed) for source in sources]

    return beside


def loss_alone(module: fx.GraphModule) -> fx.GraphModule:
    """Dynamo's graph, returning nothing but the loss."""
    (returned,) = module.graph.output_node().args
    if len(returned) > 1:  # type: ignore[arg-type]
        module.graph.output_node().args = ((returned[0],),)  # type: ignore[index]
        module.recompile()
    return module


def _check_loss(returned: object) -> None:
    loss = returned.meta["example_value"] if isinstance(returned, fx.Node) else None
    if isinstance(loss, torch.Tensor) and loss.numel() == 0:
        raise UsageError("the step has no loss: give loss_fn, or a model that returns its loss (or has it as .loss)")
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1 or not loss.is_floating_point():
        found = tuple(loss.shape) if isinstance(loss, torch.Tensor) else type(returned).__name__
        raise UsageError(f"the loss must be a single number to be differentiated, got {found}; reduce it with .mean()")


def _computed_from_numbers(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that follow from Python numbers alone; of a float the input is a 0-d tensor, which its user has not."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder":
            is_known = not node.meta["grapharg"].is_tensor
        else:
            is_known = bool(node.all_input_nodes) and found.issuperset(node.all_input_nodes)
        if is_known:
            found.add(node)
    return found


def _alone(module: fx.GraphModule, wanted: Sequence[fx.Node]) -> Callable[..., tuple[Any, ...]]:
    """A graph that takes the same inputs, and computes nothing but the wanted nodes."""
    if not wanted:
        return lambda *_: ()
    graph = fx.Graph()
    made: dict[fx.Node, fx.Node] = {}
    needed, waiting = set(wanted), list(wanted)
    while waiting:
        new = set(waiting.pop().all_input_nodes) - needed
        needed |= new
        waiting += new
    for node in module.graph.nodes:
        if node.op == "placeholder" or node in needed:
            made[node] = graph.node_copy(node, made.__getitem__)
    graph.output(tuple(made[node] for node in wanted))
    return fx.GraphModule(module, graph).forward

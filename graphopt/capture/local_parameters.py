"""Parameters that are DTensors, taken as the shards that this rank holds of them.

Dynamo's graph reads a DTensor as one input. Here that is its shard, which a node of the graph wraps again. Autograd
goes through that node too, so that a gradient comes out as this rank's shard, laid out as the parameter is: where
operators leave parts to be summed (the weight of a norm under `SequenceParallel`), their sum.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import fx

from graphopt.base.errors import CaptureError
from graphopt.device.storages import laid_out_like, local_of


def read_local_parameters(module: fx.GraphModule, parameters: Collection[int]) -> None:
    """Let one of Dynamo's graphs take shards where it takes DTensors: of the inputs at positions `parameters`.

    Raises CaptureError where another input, or the loss, is a DTensor.
    """
    changed = False
    for place, node in enumerate(module.graph.find_nodes(op="placeholder")):
        whole = node.meta.get("example_value")
        if not isinstance(whole, torch.Tensor) or local_of(whole) is whole:
            continue
        if place not in parameters:
            raise CaptureError(
                "the step reads a DTensor that is no parameter: give the batch as plain tensors, which the model "
                "distributes itself (PrepareModuleInput), and keep buffers plain"
            )
        _wrap(module.graph, node, whole)
        changed = True
    (returned,) = module.graph.output_node().args
    loss = returned[0].meta.get("example_value") if isinstance(returned[0], fx.Node) else None  # type: ignore[index]
    if isinstance(loss, torch.Tensor) and local_of(loss) is not loss:
        raise CaptureError(
            "the loss is a DTensor: return a plain tensor, loss.full_tensor(), or let the last layer give plain "
            "outputs (use_local_output=True)"
        )
    if changed:
        module.recompile()


def _wrap(graph: fx.Graph, node: fx.Node, whole: Any) -> None:
    readers = list(node.users)

    def from_shard(shard: torch.Tensor) -> torch.Tensor:
        return laid_out_like(shard, whole)

    with graph.inserting_after(_last_input(graph)):
        made = graph.call_function(from_shard, (node,))
    made.meta = {"example_value": whole}
    node.meta["example_value"] = local_of(whole).detach().requires_grad_(whole.requires_grad)
    for reader in readers:
        reader.replace_input_with(node, made)


def _last_input(graph: fx.Graph) -> fx.Node:
    last: fx.Node = graph.find_nodes(op="placeholder")[-1]
    return last

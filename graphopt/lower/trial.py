"""What a lowered forward and backward allocate, found by running both once on made-up inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from graphopt.cost_models.signature import TensorSpec, concrete, tensor_spec
from graphopt.device.peak_window import CpuWindow, CudaWindow
from graphopt.device.timing import plain_execution
from graphopt.graph.joint import is_tangent
from graphopt.graph.roles import DESCRIPTOR, UNDEFINED, Accumulator
from graphopt.lower.inductor import Lowered


def trial_peak_bytes(
    halves: tuple[fx.GraphModule, fx.GraphModule], lowered: tuple[Lowered, Lowered], window: CpuWindow | CudaWindow
) -> int:
    """The most bytes that a forward and its backward allocate beside the forward's inputs.

    The gradients that come to the backward are a part of it, and so are the forward's outputs to the end, as in a plan;
    sums of gradients that it adds to are not.
    Inputs that are only read lie in one block of memory as large as the largest, so that there is hardly more on the
    device than in a step. Their numbers are made up: floats are a half, integers zero, so that they are indices of
    anything.
    """
    forward, backward = (half.graph.find_nodes(op="placeholder") for half in halves)
    added = [node for node in backward if isinstance(node.meta.get(DESCRIPTOR), Accumulator)]
    tangents = [node for node in backward if is_tangent(node)]
    num_saved = len(backward) - len(added) - len(tangents)
    with plain_execution(device_of(halves[0]) or torch.device("cpu")):
        inputs, sums = _made_up(forward), _made_up(added)
        window.take()
        start_bytes = window.live_bytes()
        outputs = list(lowered[0](list(inputs)))
        peak = window.take()
        # saved behind tensors, and handed over before them
        given = sorted(outputs[len(outputs) - num_saved :], key=lambda each: isinstance(each, torch.Tensor))
        del outputs[len(outputs) - num_saved :]
        given += [None if node.meta.get(UNDEFINED) else _filled(_spec(node)) for node in tangents]
        given += sums
        lowered[1](given)
        peak = max(peak, window.take())
        del outputs
    return peak - start_bytes


def trial_peak_bytes_of_whole(graph: fx.GraphModule, lowered: Lowered, window: CpuWindow | CudaWindow) -> int:
    """The same for a forward and backward in one graph, whose inputs are all resident."""
    with plain_execution(device_of(graph) or torch.device("cpu")):
        inputs = _made_up(graph.graph.find_nodes(op="placeholder"))
        window.take()
        start_bytes = window.live_bytes()
        lowered(list(inputs))
        return window.take() - start_bytes


def _made_up(nodes: Sequence[fx.Node]) -> list[Any]:
    specs = {node: _spec(node) for node in nodes if isinstance(node.meta["val"], torch.Tensor)}
    shared: dict[torch.dtype, torch.Tensor] = {}
    for node, spec in specs.items():
        if not _is_written(node) and spec.extent > shared.get(spec.dtype, torch.empty(0)).numel():
            shared[spec.dtype] = _filled(TensorSpec((spec.extent,), (1,), spec.dtype, spec.device))
    made = []
    for node in nodes:
        if node not in specs:
            made.append(concrete(node.meta["val"]))
        elif _is_written(node) or not specs[node].extent:
            made.append(_filled(specs[node]))
        else:
            made.append(shared[specs[node].dtype].as_strided(specs[node].shape, specs[node].stride))
    return made


def _spec(node: fx.Node) -> TensorSpec:
    return tensor_spec(node.meta["val"])


def _filled(spec: TensorSpec) -> torch.Tensor:
    value = 0.5 if spec.dtype.is_floating_point or spec.dtype.is_complex else spec.dtype is torch.bool
    block = torch.full((spec.extent,), value, dtype=spec.dtype, device=spec.device)
    return block.as_strided(spec.shape, spec.stride)


def _is_written(node: fx.Node) -> bool:
    return any(
        user.args and user.args[0] is node and getattr(getattr(user.target, "_schema", None), "is_mutable", False)
        for user in node.users
    )


def device_of(half: fx.GraphModule) -> torch.device | None:
    """Where a half's tensors are; None where it takes none."""
    values = (node.meta.get("val") for node in half.graph.nodes)
    return next((value.device for value in values if isinstance(value, torch.Tensor)), None)

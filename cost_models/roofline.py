"""Roofline: an op takes as long as its arithmetic or its memory traffic, whichever is longer. Runs no op."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from graphopt.cost_models.costs import OpCost
from graphopt.cost_models.device_speed import DeviceSpeed, device_speed
from graphopt.cost_models.signature import At, known_size, node_device
from graphopt.device.storages import tensors_in
from graphopt.kernels.streaming.blocks import slots_bytes
from graphopt.kernels.streaming.ops import STREAMED

_TRANSCENDENTALS = {
    # By name of the operator: how many exponentials' worth of work an element takes.
    **dict.fromkeys(("exp", "log", "tanh", "sigmoid", "erf", "sin", "cos", "log1p", "expm1", "rsqrt", "silu"), 1.0),
    **dict.fromkeys(("_softmax", "_log_softmax", "gelu", "gelu_backward", "silu_backward", "softplus", "mish"), 1.0),
    **dict.fromkeys(("pow", "bernoulli", "native_dropout", "rand_like", "rand"), 2.0),
    **dict.fromkeys(("randn", "randn_like", "normal", "multinomial", "sort", "topk"), 8.0),
}
_LOOKUPS = {"embedding", "index", "gather", "index_select", "_unsafe_index"}
"""Read of their first argument no more than they write."""


def roofline(nodes: Sequence[Node], at: At | None = None) -> list[OpCost]:
    """Estimate each node from the shapes, strides and dtypes in `meta["val"]`; scratch is taken to be none but our own.

    `at` says what sizes are that are symbols; None: as they were captured.
    """
    # a node may stand for many: of layers that are captured once
    devices = {node: node_device(node) for node in dict.fromkeys(nodes)}
    # each is looked up by all that decides which kernels run
    speeds = {device: device_speed(device) for device in dict.fromkeys(devices.values()) if device is not None}
    # without a device it is arithmetic on sizes
    costs = {n: OpCost(0.0, 0) if device is None else _cost(n, speeds[device], at) for n, device in devices.items()}
    return [costs[node] for node in nodes]


def _cost(node: Node, speed: DeviceSpeed, at: At | None) -> OpCost:
    rate = _matmul_rate(node, speed)
    compute_seconds = flops(node, at) / rate + _transcendentals(node, at) / speed.transcendentals_per_second
    traffic_seconds = moved_bytes(node, at) / speed.bytes_per_second
    return OpCost(max(compute_seconds, traffic_seconds) + speed.op_seconds, _own_scratch_bytes(node))


def _own_scratch_bytes(node: Node) -> int:
    """The blocks of state that is elsewhere, of an update in the backward."""
    if node.target not in STREAMED:
        return 0
    given: dict[str, Any] = dict(node.kwargs)
    params = [argument.meta["val"] for argument in given["params"]]
    kinds = sum(bool(given.get(name)) for name in STREAMED[node.target])
    return slots_bytes(params, kinds, given["block_elements"])


def flops(node: Node, at: At | None = None) -> float:
    """Floating-point operations: PyTorch's own count where it has one, else one for each element read or written."""
    formula = _FORMULAS.get(getattr(node.target, "_overloadpacket", node.target))
    if formula is not None:

        def shaped(value: Any) -> Any:
            # a formula compares sizes, which would tie symbols to each other
            return torch.Size(known_size(s, at) for s in value.shape) if isinstance(value, torch.Tensor) else value

        args, kwargs = map_arg((node.args, node.kwargs), lambda argument: tree_map(shaped, argument.meta.get("val")))
        try:
            return float(formula(*args, **kwargs, out_val=tree_map(shaped, node.meta.get("val"))))
        except (TypeError, ValueError, AssertionError, AttributeError, IndexError):
            pass  # a formula written for another overload
    return float(sum(_numel(tensor, at) for tensor in _operands(node)))


def moved_bytes(node: Node, at: At | None = None) -> int:
    """Bytes read and written; an expanded dimension is read once."""

    def touched(value: Any) -> int:
        return sum(_touched_bytes(tensor, at) for tensor in tensors_in(value))

    outputs = touched(node.meta.get("val"))
    read = [touched(argument.meta.get("val")) for argument in node.all_input_nodes]
    if read and _base_name(node) in _LOOKUPS:
        read[0] = min(read[0], outputs)
    return outputs + sum(read)


def _matmul_rate(node: Node, speed: DeviceSpeed) -> float:
    dtype = next((tensor.dtype for tensor in _operands(node) if tensor.dtype.is_floating_point), torch.float32)
    rates = speed.matmul_flops_per_second
    return rates.get(str(dtype).removeprefix("torch."), rates["float32"])


def _transcendentals(node: Node, at: At | None) -> float:
    weight = _TRANSCENDENTALS.get(_base_name(node), 0.0)
    return weight * max((_numel(tensor, at) for tensor in _operands(node)), default=0) if weight else 0.0


def _operands(node: Node) -> list[torch.Tensor]:
    values = [node.meta.get("val"), *(argument.meta.get("val") for argument in node.all_input_nodes)]
    return tensors_in(values)


def _numel(tensor: torch.Tensor, at: At | None) -> int:
    return math.prod(known_size(size, at) for size in tensor.shape)


def _touched_bytes(tensor: torch.Tensor, at: At | None) -> int:
    if tensor.layout is not torch.strided:
        return _numel(tensor, at) * tensor.dtype.itemsize
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    touched = math.prod(known_size(size, at) for size, stride in sizes if known_size(stride, at) != 0)
    return touched * tensor.dtype.itemsize


def _base_name(node: Node) -> str:
    return str(getattr(node.target, "_opname", "")).removesuffix("_") or str(node.target)


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> Any:
    return sdpa_flop_count(query, key, value)


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> Any:
    return sdpa_backward_flop_count(gradient, query, key, value)


_aten = torch.ops.aten
_FORMULAS: dict[Any, Any] = {
    **flop_registry,
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    _aten._scaled_dot_product_fused_attention_overrideable: _attention,
    _aten._scaled_dot_product_fused_attention_overrideable_backward: _attention_backward,
}

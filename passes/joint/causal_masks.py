"""Pass: a mask that transformers writes out only because it is traced is left out, as eager leaves it out.

In eager transformers gives attention no mask where that would be a plain lower triangle, or hide nothing, but
`is_causal=True` or nothing. While it is traced it may not look at the mask, and writes it out: another kernel, with
other bits, that reads a tensor of the square of the length. It is made of constants only, so that what it holds can be
seen here. A mask that the user's own code writes is given to the kernel by eager too, and stays.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.utils._python_dispatch import _disable_current_modes

from graphopt.device.storages import known
from graphopt.graph.at_sizes import AtSizes
from graphopt.graph.joint import JointGraph
from graphopt.graph.nodes import is_mutating, is_random, source_line
from graphopt.graph.numbers import is_number, is_symbol

logger = logging.getLogger("graphopt")
aten = torch.ops.aten

#: Attention -> its argument that is a mask.
_MASKS = {
    aten._scaled_dot_product_flash_attention_for_cpu.default: "attn_mask",
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default: "attn_mask",
    aten._scaled_dot_product_efficient_attention.default: "attn_bias",
    aten._scaled_dot_product_efficient_attention_backward.default: "attn_bias",
}
_LEFT_OUT_BY = "transformers/masking_utils.py"
#: Of one tensor that is evaluated, in host memory: a triangle of 16,384 tokens.
_MOST_BYTES = 1 << 28
_MOST_NODES = 256


def causal_masks(joint: JointGraph) -> bool:
    """Replace masks of constants by `is_causal`, or by none; True where one was."""
    found = [(node, _mask_of(node)) for node in joint.graph.nodes if node.target in _MASKS and _is_eagers_kernel(node)]
    masks = list(dict.fromkeys(mask for _, mask in found if mask is not None))
    kinds: dict[object, bool | None] = {}
    causal: dict[fx.Node, bool | None] = {}
    for mask in masks:
        hides = _what_hides(mask)
        causal[mask] = kinds.setdefault(hides, _is_causal(hides)) if hides is not None else None
    changed = [(node, mask) for node, mask in found if mask is not None and causal[mask] is not None]
    for node, mask in changed:
        _leave_out(node, is_causal=causal[mask] is True)
    if changed:
        for mask in masks:
            _erase_unread(joint.graph, mask)
        joint.module.recompile()
        logger.info(
            "%d attention mask(s) that transformers writes out while it is traced are left out, as in eager",
            sum(causal[mask] is not None for mask in masks),
        )
    return bool(changed)


def _mask_of(attention: fx.Node) -> fx.Node | None:
    """The mask, where queries and keys are as many, and more than one."""
    mask, query, key = (_argument(attention, name) for name in (_MASKS[attention.target], "query", "key"))  # type: ignore[index]
    if not isinstance(mask, fx.Node) or _argument(attention, "is_causal"):
        return None
    lengths = [each.meta["val"].shape[-2] for each in (query, key) if isinstance(each, fx.Node)]
    alike = statically_known_true(lengths[0] == lengths[-1]) and statically_known_true(lengths[0] > 1)
    return mask if alike else None


def _argument(node: fx.Node, name: str) -> object:
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    position = names.index(name)
    return node.args[position] if position < len(node.args) else node.kwargs.get(name)


def _is_eagers_kernel(attention: fx.Node) -> bool:
    """Whether eager calls the same kernel without a mask: in half precision CUDA has another one for that."""
    value = attention.args[1].meta["val"]  # type: ignore[union-attr]
    return bool(value.device.type == "cpu" or value.dtype == torch.float32)


def _what_hides(mask: fx.Node) -> fx.Node | None:
    """The tensor of bools behind a mask; None where it is not known to be transformers' own."""
    hides: object = mask
    if mask.target is aten.where.self and _is_number(mask.args[1], 0.0) and _is_number(mask.args[2], -float("inf")):
        hides = mask.args[0]
    return hides if isinstance(hides, fx.Node) and hides.meta["val"].dtype == torch.bool else None


def _is_number(item: object, number: float) -> bool:
    return isinstance(item, fx.Node) and item.target is aten.scalar_tensor.default and bool(item.args[0] == number)


def _is_causal(hides: fx.Node) -> bool | None:
    """True for a lower triangle, False where nothing is hidden, None for all else."""
    nodes = _constant_nodes(hides)
    tensors = [node for node in nodes if isinstance(node.meta["val"], torch.Tensor)]
    if not nodes or not all(_LEFT_OUT_BY in source_line(n) for n in tensors if n.meta["val"].dtype == torch.bool):
        return None
    shape = hides.meta["val"].shape
    if any(is_symbol(size) and not size.node.expr.is_Symbol for size in shape):
        return None
    with _disable_current_modes():
        found = {_what_it_is(_evaluated(nodes, at)) for at in _tried(shape)}
    (kind,) = found if len(found) == 1 else (None,)
    return kind if kind is None or _stays_below(shape) else None


def _what_it_is(value: torch.Tensor) -> bool | None:
    if bool(value.all()):
        return False
    triangle = torch.ones(value.shape[-2:], dtype=torch.bool).tril()
    return True if bool((value == triangle).all()) else None


def _tried(shape: torch.Size) -> list[AtSizes]:
    """Sizes at which a mask is looked at: as it was captured, and with lengths as they may become."""
    lengths: set[Any] = set()
    hints: dict[Any, int] = {}
    for position, size in enumerate(shape):
        if isinstance(size, torch.SymInt):
            hints[size.node.expr] = known(size)
            if position >= len(shape) - 2:
                lengths.add(size.node.expr)
    return [
        AtSizes({symbol: times * hint if symbol in lengths else 2 for symbol, hint in hints.items()})
        for times in ((1, _times(shape)) if hints else (1,))
    ]


def _times(shape: torch.Size) -> int:
    """How many times as long a mask may become, for which it is looked at: a sliding window shows where it is long."""
    longest = max(known(size) for size in shape[-2:])
    return max((times for times in (8, 4, 2) if (times * longest) ** 2 <= _MOST_BYTES), default=1)


def _stays_below(shape: torch.Size) -> bool:
    """Guard that lengths stay below those at which the mask was looked at; longer ones are captured anew."""
    times = _times(shape)
    return all(bool(size <= times * known(size)) for size in shape[-2:] if is_symbol(size))


def _constant_nodes(last: fx.Node) -> list[fx.Node]:
    """A node and all that it is made of, in order; [] where that is more than constants, or much."""
    found: dict[fx.Node, None] = {}
    waiting = [last]
    while waiting:
        node = waiting.pop()
        if node in found:
            continue
        if len(found) == _MOST_NODES or not _is_constant(node):
            return []
        found[node] = None
        if not is_number(node):
            waiting.extend(node.all_input_nodes)
    return [node for node in last.graph.nodes if node in found]


def _is_constant(node: fx.Node) -> bool:
    value = node.meta.get("val")
    if is_number(node):
        return isinstance(value, torch.SymInt)
    is_operator = isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "aten"
    if not is_operator or not isinstance(value, torch.Tensor) or is_random(node) or is_mutating(node):
        return False
    return known(value.numel()) * value.itemsize <= _MOST_BYTES


def _evaluated(nodes: Sequence[fx.Node], at: AtSizes) -> torch.Tensor:
    """What the last node holds at such sizes; what nobody reads any more is given up meanwhile."""
    values: dict[fx.Node, Any] = {}
    unread = {node: set(node.users) & set(nodes) for node in nodes}
    for node in nodes:
        if is_number(node):
            values[node] = at(node.meta["val"])
            continue
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
        args, kwargs = fx.node.map_aggregate((args, kwargs), at)
        if "device" in kwargs:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        for source in node.all_input_nodes:
            unread[source].discard(node)
            if not unread[source]:
                values.pop(source, None)
    found: torch.Tensor = values[nodes[-1]]
    return found


def _leave_out(attention: fx.Node, *, is_causal: bool) -> None:
    names = [argument.name for argument in attention.target._schema.arguments]  # type: ignore[union-attr]
    mask, args, kwargs = _MASKS[attention.target], list(attention.args), dict(attention.kwargs)  # type: ignore[index]
    for name, value in ((mask, None), ("is_causal", is_causal)):
        position = names.index(name)
        if position < len(args):
            args[position] = value
        else:
            kwargs[name] = value
    attention.args, attention.kwargs = tuple(args), kwargs


def _erase_unread(graph: fx.Graph, node: fx.Node) -> None:
    """Erase what only a mask was made of."""
    waiting = [node]
    while waiting:
        each = waiting.pop()
        if not each.users and each.op == "call_function" and _is_constant(each):
            sources = each.all_input_nodes
            graph.erase_node(each)
            waiting.extend(sources)

"""Costs of a graph's ops at other sizes than those at which they were profiled.

Seconds follow the roofline from the size that was profiled, or are the measured ones where that size was. Scratch does
not follow from sizes by any rule: kernels cut work into blocks, and choose others above thresholds. So each distinct op
that may take some is run once at the sizes in question, which takes a share of one step, and no planning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from graphopt.cost_models.costs import OpCost
from graphopt.cost_models.profiled import known_costs, may_run
from graphopt.cost_models.roofline import roofline
from graphopt.cost_models.scratch import scratch_of_one
from graphopt.cost_models.signature import At, Signature, node_device, signature
from graphopt.device.timing import plain_execution

aten = torch.ops.aten

#: What calls were measured to take, by device and by the key of a signature.
Known = Mapping[torch.device, Mapping[str, OpCost | None]]

#: Kernels that take no scratch from torch's allocator at any size: products in single and double precision on a CPU.
_PRODUCTS = frozenset((aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default))


@dataclass(frozen=True, eq=False)
class CostsBySize:
    """Costs of one graph's ops by sizes of its inputs: `kinds` has for each op which of the `examples` it is like.

    Two ops are of one kind where they do the same at all sizes.
    """

    kinds: tuple[int, ...]
    examples: tuple[fx.Node, ...]
    costs: tuple[OpCost, ...]
    estimates: tuple[OpCost, ...]
    runs: bool

    def at(self, at: At) -> list[OpCost]:
        """One cost for each op."""
        nodes = self.examples
        calls = list(zip(nodes, self.costs, self.estimates, roofline(nodes, at), strict=True))
        device = next((each for node in nodes if (each := node_device(node)) is not None), torch.device("cpu"))
        with plain_execution(device) if self.runs else nullcontext():
            known = {each: known_costs(each) for each in set(map(node_device, nodes)) if each and self.runs}
            found = [self._at(at, known, *each) for each in calls]
        return [found[kind] for kind in self.kinds]

    def seconds_at(self, at: At) -> list[float]:
        """One for each op, as they follow from the size that was profiled; nothing is run."""
        pairs = zip(self.costs, self.estimates, roofline(self.examples, at), strict=True)
        found = [_scaled_seconds(cost, now, then) for cost, then, now in pairs]
        return [found[kind] for kind in self.kinds]

    def _at(self, at: At, known: Known, node: fx.Node, cost: OpCost, then: OpCost, now: OpCost) -> OpCost:
        seconds = _scaled_seconds(cost, now, then)
        call = signature(node, at) if self.runs and cost.storage_bytes is not None else None
        if call is None:
            return OpCost(seconds, _scaled_bytes(cost.workspace_bytes, now, then))
        if (measured := known.get(call.device, {}).get(call.key)) is not None:
            return measured
        if _takes_none(call, cost):
            return OpCost(seconds, 0)
        scratch = scratch_of_one(call) if may_run(call) else None
        if scratch is None:
            return OpCost(seconds, _scaled_bytes(cost.workspace_bytes, now, then))
        return OpCost(seconds, *scratch)


def costs_by_size(nodes: Sequence[fx.Node], costs: Sequence[OpCost]) -> CostsBySize:
    """Read the ops of a graph whose sizes are symbols, with their costs at the sizes of its capture."""
    kinds: dict[str, int] = {}
    by_node = {node: kinds.setdefault(spelled_op(node), len(kinds)) for node in dict.fromkeys(nodes)}
    numbers = [by_node[node] for node in nodes]
    first = [numbers.index(kind) for kind in range(len(kinds))]
    examples = tuple(nodes[i] for i in first)
    runs = any(costs[i].storage_bytes is not None for i in first)
    return CostsBySize(tuple(numbers), examples, tuple(costs[i] for i in first), tuple(roofline(examples)), runs)


def spelled_op(node: fx.Node) -> str:
    """An op with the layouts of what it reads, in symbols: equal where ops do the same at all sizes."""

    def spell(item: Any) -> Any:
        value = item.meta.get("val") if isinstance(item, fx.Node) else item
        return pytree.tree_map(_layout, value)

    args, kwargs = fx.node.map_arg((node.args, node.kwargs), spell)
    return f"{node.target} {args} {kwargs}"


def _layout(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return str(value)
    return f"{value.dtype}{tuple(value.shape)}:{tuple(value.stride())}@{value.device}"


def _scaled_seconds(cost: OpCost, now: OpCost, then: OpCost) -> float:
    if cost.seconds == then.seconds:  # not profiled: no rounding makes another one of it
        return now.seconds
    return cost.seconds * now.seconds / then.seconds if then.seconds else cost.seconds


def _scaled_bytes(size: int, now: OpCost, then: OpCost) -> int:
    """Scratch of an op that is not run: as much more as it takes longer."""
    return int(size * max(now.seconds / then.seconds, 1.0)) if size and then.seconds else size


def _takes_none(call: Signature, cost: OpCost) -> bool:
    """Whether an op that took no scratch, and made nothing larger than its result, does so at all sizes."""
    if cost.workspace_bytes or sum(cost.storage_bytes or ()) > call.output_bytes:
        return False
    is_pointwise = torch.Tag.pointwise in call.target.tags
    wide = all(spec.dtype in (torch.float32, torch.float64) for spec in call.tensors)
    return is_pointwise or (call.target in _PRODUCTS and wide and call.device.type == "cpu")

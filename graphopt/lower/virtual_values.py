"""Which values of a joint graph Inductor never stores: it computes them inside of the kernels that read them.

The rules are Inductor's own (2.13; torch/_inductor/ir.py, `StorageBox`, and `GraphLowering.run_node`): a pointwise op
is inlined into its readers, but where one of them is a library call, where there are several and it is dear, or where
too much would be inlined. What would be stored for one kernel of the same size alone is fused into that, and not stored
either. What is not known to be inlined counts as stored.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import fx
from torch._inductor import config

from graphopt.graph.joint import JointGraph
from graphopt.graph.nodes import has_effect, is_random, is_view, writes_input
from graphopt.graph.step_graph import tensors_of

aten, prims = torch.ops.aten, torch.ops.prims

#: Too dear to compute twice on a CPU (StorageBox.should_realize_on_reuse), and what holds one of them.
_DEAR = {
    *(aten.exp.default, aten.log.default, aten.log10.default, aten.log1p.default, aten.log2.default),
    *(aten.sigmoid.default, aten.tanh.default),
}
#: Pointwise in Inductor, and not tagged so: they make numbers from nothing, or change a type.
POINTWISE = {
    *(prims.convert_element_type.default, prims.iota.default, aten.full.default, aten.scalar_tensor.default),
    *(prims.fma.default, aten.full_like.default, aten.arange.start_step, aten.clone.default),
}
REDUCTIONS = {
    *(aten.sum.dim_IntList, aten.sum.default, aten.mean.dim, aten.mean.default, aten.amax.default, aten.amin.default),
    *(aten.var_mean.correction, aten.var.correction, aten.prod.default, aten.any.dim, aten.argmax.default),
    prims.xor_sum.default,
}
#: They read some elements of what may be computed there.
GATHERS = {aten.gather.default, aten.index.Tensor, aten._unsafe_index.Tensor}


#: Marks pointwise ops that are planned as stored: Inductor would inline some, and compute others only in front of the
#: call that reads them, while all that they read waits for that behind recomputations. So the kernels of a U-Net took
#: 7.3 MiB, where 6.7 were planned; now they take 6.8 (November 2026).
STORED = "graphopt_stored"
#: Tensors that wait for one expression, and are freed by it. A sum of twelve products would hold all of them.
_MOST_WAITING = 2


@dataclass
class _Expression:
    """What is inlined where a value is read: the tensors that are read for it, its ops, and whether one is dear."""

    reads: set[fx.Node] = field(default_factory=set)
    ops: int = 0
    is_dear: bool = False


def virtual_nodes(joint: JointGraph) -> frozenset[fx.Node]:
    """The ops whose result is never stored; each is computed in every kernel that reads it, by way of views or not.

    Pointwise ops that are not among them are marked as `STORED`.
    """
    late = joint.backward_nodes()
    returned = {node for node in joint.outputs if isinstance(node, fx.Node)}
    readers = {node: _readers(node) for node in joint.graph.nodes if node.op == "call_function"}
    inlined: dict[fx.Node, _Expression] = {}
    candidates = []
    for node in joint.graph.nodes:
        node.meta.pop(STORED, None)
        if not _is_pointwise(node) or _is_returned(node, returned):
            continue
        own = readers[node]
        if not own or any((reader in late) != (node in late) or not _is_fusible(reader) for reader in own):
            continue
        candidates.append(node)
        expression = _expression(node, inlined)
        if _waits_for_many(node, expression, readers):
            node.meta[STORED] = True
        elif not _is_stored(node, expression):
            inlined[node] = expression
    virtual = frozenset(inlined) | _fused(candidates, readers, set(inlined))
    for node in joint.graph.nodes:
        if _is_pointwise(node) and node not in virtual:
            node.meta[STORED] = True
    return virtual


def _waits_for_many(node: fx.Node, expression: _Expression, readers: dict[fx.Node, list[fx.Node]]) -> bool:
    """Whether more tensors as large as its result wait for it alone than it is worth to hold."""
    waiting = [read for read in expression.reads if len(readers.get(read, ())) == 1 and _numel(read) >= _numel(node)]
    return len(waiting) > _MOST_WAITING


def _fused(candidates: list[fx.Node], readers: dict[fx.Node, list[fx.Node]], virtual: set[fx.Node]) -> set[fx.Node]:
    """Of what would be stored, what one kernel alone reads, through inlined ops or not."""
    found: set[fx.Node] = set()
    kernels: dict[fx.Node, set[fx.Node]] = {}

    def kernels_of(node: fx.Node) -> set[fx.Node]:
        if node not in kernels:
            inside = (reader in virtual or reader in found for reader in readers[node])
            parts = (kernels_of(r) if is_in else {r} for r, is_in in zip(readers[node], inside, strict=True))
            kernels[node] = set().union(*parts)
        return kernels[node]

    for node in reversed(candidates):
        reached = kernels_of(node)
        if (
            node not in virtual
            and not node.meta.get(STORED)
            and len(reached) == 1
            and _numel(node) == max(map(_loops, reached))
        ):
            found.add(node)
    return found


def _readers(node: fx.Node) -> list[fx.Node]:
    """Who reads it, views of it looked through."""
    found: dict[fx.Node, None] = {}
    for user in node.users:
        if user.op == "call_function" and is_view(user) and user.target is not operator.getitem:
            found.update(dict.fromkeys(_readers(user)))
        else:
            found[user] = None
    return list(found)


def _is_returned(node: fx.Node, returned: set[fx.Node]) -> bool:
    return node in returned or any(is_view(user) and _is_returned(user, returned) for user in node.users)


def _is_pointwise(node: fx.Node) -> bool:
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload) or len(tensors_of(node)) != 1:
        return False
    if torch.Tag.pointwise not in node.target.tags and node.target not in POINTWISE:
        return False
    return not (is_view(node) or is_random(node) or has_effect(node) or writes_input(node))


def _is_fusible(node: fx.Node) -> bool:
    return _is_pointwise(node) or node.target in REDUCTIONS or node.target in GATHERS


def _expression(node: fx.Node, inlined: dict[fx.Node, _Expression]) -> _Expression:
    found = _Expression(ops=1, is_dear=node.target in _DEAR)
    for source in node.all_input_nodes:
        base = _base(source)
        inside = inlined.get(base)
        if inside is None:
            found.reads.add(base)
        else:
            found.reads |= inside.reads
            found.ops += inside.ops
            found.is_dear |= inside.is_dear
    return found


def _base(node: fx.Node) -> fx.Node:
    while node.op == "call_function" and is_view(node) and node.target is not operator.getitem:
        node = node.all_input_nodes[0]
    return node


def _is_stored(node: fx.Node, expression: _Expression) -> bool:
    on_cpu = tensors_of(node)[0].device.type == "cpu"
    most_reads = config.realize_cpu_acc_reads_threshold if on_cpu else config._realize_acc_reads_threshold_default
    most_ops = config.realize_cpu_opcount_threshold if on_cpu else config._realize_opcount_threshold_default
    if len(expression.reads) > most_reads or expression.ops > most_ops:
        return True
    if len(node.users) < 2:
        return False
    return (on_cpu and expression.is_dear) or len(expression.reads) > config.realize_reads_threshold


def _numel(node: fx.Node) -> int:
    return sum(tensor.numel() for tensor in tensors_of(node))


def _loops(kernel: fx.Node) -> int:
    """Elements that a kernel goes through: a reduction's are its input's."""
    nodes: Iterable[fx.Node] = (kernel, *kernel.all_input_nodes)
    return max((tensor.numel() for node in nodes for tensor in tensors_of(node)), default=0)

"""Joint graph -> StepGraph: which nodes are ops, which storages they pass, what may run twice."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import fx
from torch.autograd.function import BackwardCFunction

from graphopt.base.errors import CaptureError
from graphopt.device.storages import known, planned_bytes, storage_bytes, storage_key
from graphopt.graph.fingerprint import hash_graph
from graphopt.graph.joint import JointGraph
from graphopt.graph.nodes import (
    copied_bytes,
    has_effect,
    is_gather,
    is_mutating,
    is_random,
    is_view,
    is_wait,
    may_run_again,
    module_path,
    source_line,
    writes_input,
    written_arguments,
)
from graphopt.graph.numbers import is_symbol
from graphopt.graph.step_graph import BOUNDARY, OpInfo, StepGraph, ValueInfo, tensors_of

aten = torch.ops.aten


@dataclass
class _StepReader:
    """Values and ops while they are being collected, in the order of the step."""

    device: torch.device
    values: list[ValueInfo] = field(default_factory=list)
    by_storage: dict[int, int] = field(default_factory=dict)
    home: dict[fx.Node, int] = field(default_factory=dict)
    ops: list[OpInfo] = field(default_factory=list)
    received: dict[fx.Node, int] = field(default_factory=dict)
    #: What reads a tensor of the step behind a write to it reads this too, which the write gives: a value of no bytes.
    written: dict[fx.Node, int] = field(default_factory=dict)
    lingering: list[int] = field(default_factory=list)
    virtual: frozenset[fx.Node] = frozenset()
    #: What is read where a virtual node is read, by its storage.
    read_through: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def value_of(self, tensor: torch.Tensor, node: fx.Node, kind: str) -> int:
        key = storage_key(tensor)
        if key not in self.by_storage:
            self.by_storage[key] = len(self.values)
            own = planned_bytes(storage_bytes(tensor, self.device), self.device)
            size = 0 if kind == "resident" else max(own, copied_bytes(node, self.device))
            dtype = str(tensor.dtype).removeprefix("torch.")
            shape = tuple(map(known, tensor.shape))
            # what is resident is not counted here, whatever it is a part of
            sizes = (*tensor.shape, *(() if kind == "resident" else (tensor.untyped_storage().nbytes(),)))
            traced = tensor if any(map(is_symbol, sizes)) else None
            self.values.append(ValueInfo(node.name, node, kind, size, shape, dtype, traced))
        return self.by_storage[key]


def build_step_graph(
    joint: JointGraph, static_inputs: Sequence[int] = (), virtual: frozenset[fx.Node] = frozenset()
) -> StepGraph:
    """Read a joint graph as ops and values.

    `static_inputs` are the positions of the primals that are parameters or buffers. The result of `virtual` nodes is
    never stored. Raises CaptureError where tensors live on two accelerators, or are sparse.
    """
    _check_dense(joint)
    primals = joint.primals
    reader = _StepReader(_device_of(joint.graph.find_nodes(op="placeholder")), virtual=virtual)
    for node in [*primals, *joint.added, *joint.graph.find_nodes(op="get_attr")]:
        for tensor in tensors_of(node):
            reader.home[node] = reader.value_of(tensor, node, "resident")
    forward, backward = _ordered_nodes(joint)
    mutated = _mutated_values(reader, forward)
    for node in forward:
        _add_node(reader, node, backward=False, mutated=mutated)
    boundary = len(reader.ops)
    _add_boundary(reader, joint)
    for node in backward:
        _add_node(reader, node, backward=True, mutated=mutated)
    _hold_to_the_end(reader)
    outputs = _kept_outputs(reader, joint, boundary)
    return StepGraph(
        joint=joint,
        device=reader.device,
        ops=tuple(reader.ops),
        values=_label_values(reader, joint),
        outputs=outputs,
        home=reader.home,
        static_inputs=frozenset(primals[i].name for i in static_inputs if i < len(primals)),
        boundary=boundary,
        graph_hash=hash_graph(joint.module),
        virtual=virtual,
    )


def _check_dense(joint: JointGraph) -> None:
    for node in joint.graph.nodes:
        if any(tensor.layout != torch.strided for tensor in tensors_of(node)):
            where = source_line(node)
            raise CaptureError(
                f"{node.name}{' at ' + where if where else ''} makes a sparse tensor, whose bytes depend on its data "
                "and cannot be planned; make it dense (nn.Embedding(..., sparse=False))"
            )


def _add_node(reader: _StepReader, node: fx.Node, *, backward: bool, mutated: frozenset[int]) -> None:
    if node in reader.virtual:
        (made,) = tensors_of(node)
        reader.read_through[storage_key(made)] = tuple(dict.fromkeys(_input_values(reader, node)))
        return
    if node.target is operator.getitem:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        tensors = tensors_of(node)
        if isinstance(node.meta.get("val"), torch.Tensor):
            # A snapshot taken for the tuple and one taken for its item may be two fake tensors.
            item = source.meta["val"][node.args[1]]
            reader.by_storage.setdefault(storage_key(tensors[0]), reader.value_of(item, node, "activations"))
            reader.home[node] = reader.by_storage[storage_key(tensors[0])]
        return
    inputs = tuple(dict.fromkeys([*_input_values(reader, node), *_sent_values(reader, node)]))
    held = tensors_of(node)
    if any(storage_key(tensor) in reader.read_through for tensor in held):
        return  # a view of what is not stored
    known = set(reader.by_storage)
    produced = [t for t in held if storage_key(t) not in known]
    outputs = tuple(dict.fromkeys(reader.value_of(tensor, node, "activations") for tensor in produced))
    outputs += _room_to_receive(reader, node)
    if len(held) == 1:
        reader.home[node] = reader.by_storage[storage_key(held[0])]
    outputs += _write(reader, node)
    if is_view(node) or (not held and not has_effect(node)):
        return
    recomputable = may_run_again(node, set(inputs) & mutated, reader.home)
    written = [reader.home[n] for n in written_arguments(node) if n in reader.home] if backward else []
    info = OpInfo(
        name=node.name,
        node=node,
        inputs=inputs,
        outputs=outputs,
        backward=backward,
        recomputable=recomputable,
        random=is_random(node),
        module_path=module_path(node),
        source=source_line(node),
        writes=tuple(v for v in dict.fromkeys(written) if reader.values[v].kind == "resident"),
    )
    reader.ops.append(info)


def _sent_values(reader: _StepReader, node: fx.Node) -> list[int]:
    """What a collective sends, and receives into, lives until somebody waits for it.

    And somewhat longer, as the backend's thread lets go of it after it has said that it is done: here until the next
    wait is over.
    """
    if not is_wait(node):
        return []
    sent = node.all_input_nodes[0]
    held = [*_input_values(reader, sent), *([reader.received[sent]] if sent in reader.received else [])]
    before, reader.lingering = reader.lingering, held
    return held + before


def _hold_to_the_end(reader: _StepReader) -> None:
    """What the last collective held is there while the last op runs."""
    last = reader.ops[-1]
    reader.ops[-1] = replace(last, inputs=tuple(dict.fromkeys([*last.inputs, *reader.lingering])))


def _room_to_receive(reader: _StepReader, node: fx.Node) -> tuple[int, ...]:
    """gloo gathers into memory of its own, as large as the result, and copies it from there."""
    if not is_gather(node) or reader.device.type != "cpu":
        return ()
    # a constant, guarded, where it is a symbol: nothing says how it follows from sizes
    size = sum(int(tensor.untyped_storage().nbytes()) for tensor in tensors_of(node))
    reader.received[node] = len(reader.values)
    reader.values.append(ValueInfo(f"{node.name}_received", node, "activations", size, (size,), "uint8"))
    return (reader.received[node],)


def _write(reader: _StepReader, node: fx.Node) -> tuple[int, ...]:
    """What a write to a tensor that the step makes gives to those that read it then: without it no value says so."""
    behind = [reader.written[source] for source in node.all_input_nodes if source in reader.written]
    if is_mutating(node) and len(tensors_of(node)) == 1:
        (to, *_) = written_arguments(node) or (None,)
        if to in reader.home and reader.values[reader.home[to]].kind == "activations":
            reader.written[node] = len(reader.values)
            reader.values.append(ValueInfo(f"{node.name}_written", node, "activations", 0, (), "uint8"))
            return (reader.written[node],)
    elif behind and is_view(node):
        reader.written[node] = behind[0]
    return ()


def _add_boundary(reader: _StepReader, joint: JointGraph) -> None:
    made = {value for op in reader.ops for value in op.outputs}
    inputs = [reader.home[node] for node in joint.forward_outputs if isinstance(node, fx.Node) and node in reader.home]
    outputs = []
    known = set(reader.by_storage)
    for node in joint.defined_tangents:
        for tensor in tensors_of(node):
            assert storage_key(tensor) not in known, f"{node} is traced as the memory of something in the forward"
            reader.home[node] = reader.value_of(tensor, node, "tangents")
            outputs.append(reader.home[node])
    kept = tuple(value for value in dict.fromkeys(inputs) if value in made)
    reader.ops.append(
        OpInfo(
            BOUNDARY, None, kept, tuple(dict.fromkeys(outputs)), True, False, False, "", "the loss, outside the graph"
        )
    )


def _kept_outputs(reader: _StepReader, joint: JointGraph, boundary: int) -> tuple[int, ...]:
    """Values alive at the end: what the user holds, the gradients, and tangents that others hold.

    `backward()` holds the one it starts from, a single number. Autograd held all of them until the
    backward returned; since torch 2.13 it hands them over in a list that the backward empties.
    """
    made = {value for op in reader.ops for value in op.outputs}
    returned = [reader.home[node] for node in joint.outputs if isinstance(node, fx.Node) and node in reader.home]
    hands_over = hasattr(BackwardCFunction, "apply_boxed")
    tangents = reader.ops[boundary].outputs
    returned += [v for v in tangents if not hands_over or reader.values[v].shape == ()]
    return tuple(value for value in dict.fromkeys(returned) if value in made)


def _label_values(reader: _StepReader, joint: JointGraph) -> tuple[ValueInfo, ...]:
    kinds: dict[int, str] = {}
    for position, node in enumerate(joint.outputs):
        if isinstance(node, fx.Node) and node in reader.home:
            kinds.setdefault(reader.home[node], "outputs" if position < joint.num_forward_outputs else "gradients")
    return tuple(
        replace(value, kind=kinds[i]) if i in kinds and value.kind == "activations" else value
        for i, value in enumerate(reader.values)
    )


def _input_values(reader: _StepReader, node: fx.Node) -> list[int]:
    values = []
    for source in node.all_input_nodes:
        if source in reader.written:
            values.append(reader.written[source])
        if source in reader.home:
            values.append(reader.home[source])
        else:
            for key in map(storage_key, tensors_of(source)):
                values.extend(reader.read_through[key] if key in reader.read_through else (reader.by_storage[key],))
    return values


def _ordered_nodes(joint: JointGraph) -> tuple[list[fx.Node], list[fx.Node]]:
    """Forward and backward nodes; a write to an input stands right behind the last read before it."""
    forward: list[fx.Node] = []
    backward: list[fx.Node] = []
    writes: list[fx.Node] = []
    late = joint.backward_nodes()
    for node in joint.graph.nodes:
        if node.op != "call_function":
            continue
        if writes_input(node) and node not in late:
            writes.append(node)
        else:
            (backward if node in late else forward).append(node)
    position = {node: i for i, node in enumerate(forward)}
    after: dict[int, list[fx.Node]] = {}
    for node in writes:
        written = {storage_key(tensor) for tensor in tensors_of(node.args[0])}  # type: ignore[arg-type]
        readers = [
            i
            for i, other in enumerate(forward)
            if other in node.all_input_nodes
            or written & {storage_key(t) for source in other.all_input_nodes for t in tensors_of(source)}
        ]
        after.setdefault(max([*readers, *(position.get(n, -1) for n in node.all_input_nodes)], default=-1), []).append(
            node
        )
    ordered = list(after.get(-1, []))
    for i, node in enumerate(forward):
        ordered += [node, *after.get(i, [])]
    return ordered, backward


def _mutated_values(reader: _StepReader, forward: list[fx.Node]) -> frozenset[int]:
    written: set[int] = set()
    for node in forward:
        if writes_input(node):
            written.update(reader.by_storage[storage_key(t)] for t in tensors_of(node.args[0]))  # type: ignore[arg-type]
    return frozenset(written)


def _device_of(placeholders: Sequence[fx.Node]) -> torch.device:
    tensors = [tensor for node in placeholders for tensor in tensors_of(node)]
    accelerators = sorted({str(t.device) for t in tensors if t.device.type not in ("cpu", "meta")})
    if len(accelerators) > 1:
        raise CaptureError(
            f"the model's tensors are on {' and '.join(accelerators)}; move the model and its inputs to one device"
        )
    if accelerators:
        return torch.device(accelerators[0])
    large = max(tensors, key=lambda tensor: known(tensor.numel()), default=None)
    return large.device if large is not None else torch.device("cpu")

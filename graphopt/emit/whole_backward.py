"""The backward for all tangents, from what the forward saves for a backward that has fewer.

A step may be planned for the tangents that are expected. Where others come, the whole backward must still be right:
what it reads and the planned one does not is made again from what is there. `kept_for_whole` says what cannot be
made again and has to be saved beside it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from torch import fx

from graphopt.device.storages import storage_key
from graphopt.emit.emit import WHICH_SCHEDULE, Emitted, Emitter, boxed, check_order
from graphopt.emit.moved_values import SavedToken
from graphopt.graph.captured_graph import WholeBackward
from graphopt.graph.joint import JointGraph
from graphopt.graph.step_graph import OpInfo, StepGraph, tensors_of
from graphopt.problem.schedule import Schedule


def kept_for_whole(step: StepGraph, fewer: JointGraph) -> frozenset[str]:
    """Names of the nodes that a forward must save for the whole backward alone; `fewer` has fewer tangents than `step`.

    What the smaller backward reads itself is there under any schedule, or is made again by it. From there on ops run
    again, but for those that may not: their results are kept.
    """
    late = fewer.backward_nodes()
    named = {node.name: node for node in step.graph_module.graph.nodes}
    sources = {source.name for node in late for source in node.all_input_nodes if source not in late}
    held = _holder(step)
    there = {value for name in sources if name in named for value in held(named[name])}
    producer = _producers(step)
    forward = {value for value, op in producer.items() if op < step.boundary}
    waiting = [value for op in step.ops[step.boundary + 1 :] for value in op.inputs]
    kept: set[int] = set()
    while waiting:
        value = waiting.pop()
        if value in there or value not in forward:
            continue
        there.add(value)
        op = step.ops[producer[value]]
        if op.random or not op.recomputable:
            kept.add(value)
        else:
            waiting.extend(op.inputs)
    return frozenset(node.name for value in kept for node in _whole_nodes(step, value))


def emit_beside_whole(step: StepGraph, schedule: Schedule, whole: WholeBackward, depot: str = "") -> Emitted:
    """Write `schedule` out, and from what its forward saves the backward for all tangents.

    Inputs of the step that only the latter reads are saved too: they are there anyway. Raises PlanMismatchError as
    `emit`.
    """
    check_order(step, schedule)
    nodes = {node.name: node for node in step.graph_module.graph.nodes}
    emitter = Emitter(step, schedule, depot=depot)
    outputs, gradients = emitter.write(schedule)
    for name in sorted(whole.kept):
        emitter.node(emitter.backward, nodes[name])
    forward = [step.ops[op].name for op in schedule[: schedule.index(step.boundary)]]
    saved_as: list[str | OpInfo | fx.Node | SavedToken] = [
        item if isinstance(item, str) else step.ops[item] for item in emitter.saved_as
    ]
    tokens = emitter.moved.tokens
    there = {node.name for node in whole.step.graph_module.graph.nodes} | {WHICH_SCHEDULE}
    for position, (item, saved) in enumerate(zip(saved_as, emitter.saved, strict=True)):
        if isinstance(item, str) and item in tokens and tokens[item].name in there:
            saved_as[position] = SavedToken(tokens[item].name, saved)
        elif isinstance(item, str) and item not in there:
            saved_as[position] = saved  # of a piece, which the whole backward has not: it makes that again
    backward, inputs = _write_whole(whole.step, forward, saved_as, depot)
    for name in inputs:
        emitter.node(emitter.backward, nodes[name])
    return replace(emitter.halves(outputs, gradients), whole_backward=backward)


def _write_whole(
    step: StepGraph, forward: Sequence[str], saved_as: Sequence[str | OpInfo | fx.Node | SavedToken], depot: str
) -> tuple[fx.GraphModule, list[str]]:
    """The whole backward, and which inputs of the step it takes behind what is saved for the other one."""
    number = {op.name: i for i, op in enumerate(step.ops)}
    nodes = {node.name: node for node in step.graph_module.graph.nodes}
    held = _holder(step)
    names = (item.of if isinstance(item, SavedToken) else item for item in saved_as)
    there = {value for name in names if isinstance(name, str) and name in nodes for value in held(nodes[name])}
    ran = (number[name] for name in forward if name in number)
    schedule = (*ran, step.boundary, *_with_recomputation(step, there))
    check_order(step, schedule)
    emitter = Emitter(step, schedule, saves_numbers=False, depot=depot)
    saved = [number[item.name] if isinstance(item, OpInfo) else item for item in saved_as]
    graph = emitter.write_backward(schedule, saved)
    assert all(node.op == "placeholder" for node in emitter.saved), f"nobody saves all of {emitter.saved}"
    return boxed(step.graph_module, graph), [node.name for node in emitter.saved]


def _with_recomputation(step: StepGraph, there: set[int]) -> Iterator[int]:
    """The backward's ops in the captured order, each behind what has to be made again for it."""
    producer = _producers(step)
    there = there | {value for value, op in producer.items() if op == step.boundary}
    for position in range(step.boundary + 1, len(step.ops)):
        waiting = [position]
        while waiting:
            op = waiting[-1]
            missing = [v for v in step.ops[op].inputs if v in producer and v not in there and producer[v] != op]
            if missing:
                waiting.append(producer[missing[0]])
                continue
            waiting.pop()
            there.update(step.ops[op].outputs)
            yield op


def _producers(step: StepGraph) -> dict[int, int]:
    return {value: i for i, op in enumerate(step.ops) for value in op.outputs}


def _holder(step: StepGraph) -> Callable[[fx.Node], set[int]]:
    """Tells the values that a node holds, be it a view of several."""
    by_storage = {storage_key(t): value for node, value in step.home.items() for t in tensors_of(node)}
    return lambda node: {by_storage[key] for key in map(storage_key, tensors_of(node)) if key in by_storage}


def _whole_nodes(step: StepGraph, value: int) -> list[fx.Node]:
    """The nodes that an op returns itself, and that hold the value."""
    ops = {op.node for op in step.ops}
    nodes = [node for node, home in step.home.items() if home == value]
    return [node for node in nodes if node in ops or (node.target is operator.getitem and node.args[0] in ops)]

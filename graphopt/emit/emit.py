"""StepGraph + schedule -> forward and backward GraphModules that run in exactly that order.

Each graph frees a value at its last use: fx's code drops a variable behind the last statement that names it, inputs
come in a list that is emptied (the boxed calling convention), and views are made right before they are read.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._prims.rng_prims import run_and_save_rng_state, run_with_rng_state
from torch.fx.graph import _BoxedCodeGen

from graphopt.base.errors import PlanMismatchError
from graphopt.emit.generator_state import fake_generator_state
from graphopt.emit.half import Half
from graphopt.emit.late_writers import check_settled
from graphopt.emit.moved_values import MovedValues, SavedToken, arrive, fetch_from
from graphopt.emit.value_nodes import nodes_of_values, virtual_and_their_views
from graphopt.graph.joint import is_tangent
from graphopt.graph.nodes import is_read_as_statistics
from graphopt.graph.numbers import SYMBOLS, is_number, is_symbol
from graphopt.graph.step_graph import OpInfo, StepGraph, tensors_of
from graphopt.problem.schedule import Schedule

RECOMPUTED = "graphopt_recomputed"
#: The input of a backward that says with which of several schedules its forward ran.
WHICH_SCHEDULE = "graphopt_which_schedule"


@dataclass(frozen=True)
class Emitted:
    """The two graphs of a step, in AOTAutograd's convention: forward returns outputs, then what is saved.

    `whole_backward` is for all tangents, where `backward` is for fewer; None where it is for all itself.
    """

    forward: fx.GraphModule
    backward: fx.GraphModule
    whole_backward: fx.GraphModule | None = None


class Emitter:
    """Writes a schedule out, op by op, first into the forward, after the boundary into the backward.

    The two halves may be one graph; then nothing has to be handed over.
    """

    def __init__(
        self, step: StepGraph, schedule: Schedule, *, halves: int = 2, saves_numbers: bool = True, depot: str = ""
    ) -> None:
        self.step, self.moved = step, MovedValues.of(step, schedule, depot)
        times = Counter(schedule)
        self.replayed = {op for op, count in times.items() if count > 1 and step.ops[op].random}
        self.seen: set[int] = set()
        self.op_nodes = {op.node for op in step.ops}
        self.forward = Half(fx.Graph())
        self.backward = Half(fx.Graph()) if halves == 2 else self.forward
        self.saved: list[fx.Node] = []
        #: What each of them is: the name of the joint graph's node, or the random op whose generator state it is.
        self.saved_as: list[str | int] = []
        self.value_nodes = nodes_of_values(step)
        self.made_where_read = virtual_and_their_views(step)
        #: Of these, what was made for the op that is being written.
        self.made_for_this: list[fx.Node] = []
        added = set(step.joint.added)
        for node in step.graph_module.graph.find_nodes(op="placeholder"):
            half = self.backward if is_tangent(node) or node in added else self.forward
            half.made[node] = half.graph.node_copy(node)
        self.first_tangent = next(iter(self.backward.graph.nodes), None)
        if halves == 2 and saves_numbers and step.has_changing_sizes:
            self.save_numbers()

    def save_numbers(self) -> None:
        """Save every number among the inputs, and which schedule ran: the same for all schedules of a graph.

        AOTAutograd is told once how many numbers are saved, while tensors are counted at each call.
        """
        for node in self.step.joint.primals:
            if is_number(node):
                self.backward.made[node] = self.placeholder(node.name, self.forward.made[node], node.name)
        # in the place of which `ManySchedules` gives a schedule's number
        self.placeholder(WHICH_SCHEDULE, self.some_size(), WHICH_SCHEDULE)

    def some_size(self) -> fx.Node:
        """A size that the forward has: where none is among its inputs, one of a tensor."""
        for node in self.step.joint.primals:
            if is_number(node):
                return self.forward.made[node]
        sizes = (
            (node, d, s) for node in self.step.joint.primals for t in tensors_of(node) for d, s in enumerate(t.shape)
        )
        node, dimension, found = next(each for each in sizes if is_symbol(each[2]))
        size = {"val": found}
        return self.forward.call(torch.ops.aten.sym_size.int, (self.forward.made[node], dimension), {}, "size", size)

    def emit(self, schedule: Schedule) -> Emitted:
        """Both halves of a schedule."""
        return self.halves(*self.write(schedule))

    def halves(self, outputs: Sequence[Any], gradients: Sequence[Any]) -> Emitted:
        """What was written, finished."""
        # autograd takes tensors first, and hands numbers over first
        saved = sorted(map(self._to_save, self.saved, self.saved_as), key=is_number)
        self.forward.graph.output((*outputs, *saved))
        self.backward.graph.output(tuple(gradients))
        root = self.step.graph_module
        return Emitted(boxed(root, self.forward.graph), boxed(root, self.backward.graph))

    def _to_save(self, saved: fx.Node, saved_as: str | int) -> fx.Node:
        """Running statistics are written by the next forward, which may come before this one's backward."""
        if is_number(saved) or not tensors_of(saved):
            return saved
        made = {node.name: node for node in self.backward.graph.find_nodes(op="placeholder")}
        if saved.op != "placeholder" or not is_read_as_statistics(made[str(saved_as)]):
            return saved
        return self.forward.call(unwatched, (saved,), {}, f"{saved.name}_unwatched", dict(saved.meta))

    def write_backward(self, schedule: Schedule, saved: Sequence[str | int | fx.Node | SavedToken]) -> fx.Graph:
        """The backward alone: it takes what is `saved` (as in `saved_as`, or another form's node), then the rest."""
        nodes = {node.name: node for node in self.step.graph_module.graph.nodes}
        tokens: dict[fx.Node, fx.Node] = {}
        for item in saved:
            if isinstance(item, int):
                name = f"{self.step.ops[item].name}_state"
                self.backward.states[item] = self.input(name, {"val": fake_generator_state(self.step)})
            elif item == WHICH_SCHEDULE:
                self.input(WHICH_SCHEDULE, self.some_size().meta)
            elif isinstance(item, SavedToken):
                tokens[nodes[item.of]] = self.input(item.token.name, item.token.meta)
            elif isinstance(item, fx.Node):
                self.input(item.name, item.meta)
            else:
                self.backward.made[nodes[item]] = self.input(item, nodes[item].meta)
        for node, token in tokens.items():
            self.backward.arriving[node] = fetch_from(self.backward, node, token, self.moved.depot)
        boundary = schedule.index(self.step.boundary)
        self.seen.update(schedule[:boundary])
        for op in schedule[boundary + 1 :]:
            self.write_op(self.backward, op)
        gradients = [self.argument(self.backward, item) for item in self.step.joint.backward_outputs]
        self.backward.graph.output(tuple(gradients))
        return self.backward.graph

    def emit_whole(self, schedule: Schedule) -> fx.GraphModule:
        """A schedule as one graph."""
        outputs, gradients = self.write(schedule)
        self.forward.graph.output((*outputs, *gradients))
        return boxed(self.step.graph_module, self.forward.graph)

    def write(self, schedule: Schedule) -> tuple[list[Any], list[Any]]:
        """Write all ops; what the forward and the backward return."""
        boundary = schedule.index(self.step.boundary)
        for op in schedule[:boundary]:
            self.write_op(self.forward, op)
        outputs = [self.argument(self.forward, item) for item in self.step.joint.forward_outputs]
        self.moved.passes_boundary()
        for op in schedule[boundary + 1 :]:
            self.write_op(self.backward, op)
        return outputs, [self.argument(self.backward, item) for item in self.step.joint.backward_outputs]

    def write_op(self, half: Half, op_id: int) -> None:
        """Write one op, and the parts of its result."""
        op = self.step.ops[op_id]
        if self.moved.write(self, half, op_id):
            return
        assert op.node is not None
        again = op_id in self.seen
        self.seen.add(op_id)
        args = tuple(self.argument(half, item) for item in op.node.args)
        kwargs = {key: self.argument(half, item) for key, item in op.node.kwargs.items()}
        if op_id in self.replayed:
            made = self.write_random(half, op_id, args, kwargs, again)
        else:
            made = half.call(op.node.target, args, kwargs, _name(op.node, again), _meta(op.node, op, again))
        self.forget(half, op)
        while self.made_for_this:
            half.made.pop(self.made_for_this.pop(), None)
        half.made[op.node] = made
        for item in op.node.users:
            if item.target is operator.getitem:
                meta = _meta(item, op, again)
                half.made[item] = half.call(item.target, (made, item.args[1]), {}, _name(item, again), meta)
        self.moved.made(self, half, op_id, again)

    def write_random(
        self, half: Half, op_id: int, args: tuple[Any, ...], kwargs: dict[str, Any], again: bool
    ) -> fx.Node:
        """A random op that runs twice: the first run saves the generator's state, later ones replay it."""
        op = self.step.ops[op_id]
        assert op.node is not None
        node, meta = op.node, _meta(op.node, op, again)
        if again:
            args = (self.state(half, op_id), node.target, *args)
            return half.call(run_with_rng_state, args, kwargs, _name(node, again), meta)
        fake = fake_generator_state(self.step)
        both = {**meta, "val": (fake, meta["val"])}
        pair = half.call(run_and_save_rng_state, (node.target, *args), kwargs, f"{node.name}_and_state", both)
        half.states[op_id] = half.call(operator.getitem, (pair, 0), {}, f"{node.name}_state", {**meta, "val": fake})
        return half.call(operator.getitem, (pair, 1), {}, node.name, meta)

    def state(self, half: Half, op_id: int) -> fx.Node:
        """The generator's state before the first run of a random op."""
        if op_id not in half.states:
            node = self.forward.states[op_id]
            half.states[op_id] = self.placeholder(node.name, node, op_id)
        return half.states[op_id]

    def forget(self, half: Half, op: OpInfo) -> None:
        """Nodes of an earlier copy of the op's values must not be read again: they would keep it alive."""
        for value in op.outputs:
            for node in self.value_nodes.get(value, ()):
                half.made.pop(node, None)
                half.arriving.pop(node, None)

    def argument(self, half: Half, item: Any) -> Any:
        """An argument of the joint graph's in terms of a half's own nodes."""
        return fx.node.map_arg(item, lambda node: self.node(half, node))

    def node(self, half: Half, node: fx.Node) -> fx.Node:
        """A half's own node for one of the joint graph; handed over, or a view made anew, where it has none."""
        if node in half.made:
            return half.made[node]
        if node in half.arriving:
            half.made[node] = arrive(half, node)
        elif node.op == "get_attr":
            half.made[node] = half.graph.node_copy(node)
        elif half is self.backward and self.is_whole(node):
            half.made[node] = self.placeholder(node.name, self.node(self.forward, node), node.name)
        else:
            # a view or a number, made here because it is read here
            half.made[node] = half.graph.node_copy(node, lambda source: self.node(half, source))
            if node in self.made_where_read:
                self.made_for_this.append(node)
        return half.made[node]

    def is_whole(self, node: fx.Node) -> bool:
        """True for a node that an op returns itself (or a primal), in contrast to a view of it."""
        if node.op == "placeholder" or node in self.op_nodes:
            return True
        return node.target is operator.getitem and node.args[0] in self.op_nodes

    def placeholder(self, name: str, saved: fx.Node, saved_as: str | int) -> fx.Node:
        """An input of the backward for what the forward saves."""
        self.saved.append(saved)
        self.saved_as.append(saved_as)
        return self.input(name, saved.meta)

    def input(self, name: str, meta: dict[str, Any]) -> fx.Node:
        """A new input of the backward, in front of the tangents; numbers stand in front of tensors."""
        graph = self.backward.graph
        anchor = self.first_tangent or next(iter(graph.nodes), None)
        if isinstance(meta["val"], SYMBOLS):
            anchor = next((node for node in graph.nodes if not is_number(node)), anchor)
        with graph.inserting_before(anchor):
            made = graph.placeholder(name)
        # generated code takes an input by its target, which must then be as unique as the name
        made.target = made.name
        made.meta = dict(meta)
        return made


def unwatched(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory, which may be written before autograd hands it to a backward."""
    return tensor.data


def emit(step: StepGraph, schedule: Schedule, depot: str = "") -> Emitted:
    """Write `schedule` out as a forward and a backward GraphModule; values that it moves out go to `depot`.

    Raises PlanMismatchError where the schedule would run a random or writing op out of order or in
    the wrong half: such a schedule changes results, whoever made it.
    """
    check_order(step, schedule)
    return Emitter(step, schedule, depot=depot).emit(schedule)


def emit_whole(step: StepGraph, schedule: Schedule, depot: str = "") -> fx.GraphModule:
    """Write `schedule` out as one GraphModule: all of the joint graph's inputs, tangents too, to all of its outputs.

    Raises PlanMismatchError as `emit`.
    """
    check_order(step, schedule)
    return Emitter(step, schedule, halves=1, depot=depot).emit_whole(schedule)


def check_order(step: StepGraph, schedule: Schedule) -> None:
    """Random ops and writes first run in the captured order and in their own half of the step.

    What the backward writes for the next step may move, but must stay behind all that reads it in this one.
    """
    check_settled(step, schedule)
    late = set(step.late_writers)
    pinned = [
        i for i, op in enumerate(step.ops) if i not in late and (op.random or not op.recomputable or i == step.boundary)
    ]
    expected = set(pinned)
    first = list(dict.fromkeys(op for op in schedule if op in expected))
    if first != pinned:
        at = next(i for i, (a, b) in enumerate(zip(first, pinned, strict=False)) if a != b)
        raise PlanMismatchError(
            f"the schedule moves {step.ops[first[at]].name!r} before {step.ops[pinned[at]].name!r}: random and "
            "writing ops must keep the captured order"
        )
    boundary = schedule.index(step.boundary)
    early = next((op for op in schedule[:boundary] if step.ops[op].backward), None)
    if early is not None:
        raise PlanMismatchError(f"the schedule runs the backward's {step.ops[early].name!r} in the forward")


def boxed(root: fx.GraphModule, graph: fx.Graph) -> fx.GraphModule:
    """A GraphModule that takes its inputs in a list, which it empties."""
    graph.set_codegen(_BoxedCodeGen())
    graph.lint()
    return fx.GraphModule(root, graph)


def _name(node: fx.Node, again: bool) -> str:
    return f"{node.name}_recomputed" if again else node.name


def _meta(node: fx.Node, op: OpInfo, again: bool) -> dict[str, Any]:
    kept = {key: value for key, value in node.meta.items() if key != "partitioner_tag"}
    return {**kept, RECOMPUTED: op.name} if again else kept

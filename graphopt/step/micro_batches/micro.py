"""Micro-batches as graphs: forward, loss and backward of one, with what becomes of its gradients inside.

Dynamo stands in front: for each call it says which graph is right for these inputs and this state of
the model, capturing a new one where none is, and what goes into it. It does not run it: that is left
to the step's own graph, in which all micro-batches of a window stand.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import fx
from torch._dynamo.exc import Unsupported, UserError
from torch._functorch._aot_autograd.descriptors import PlainAOTInput, PlainAOTOutput, TangentAOTInput
from torch._guards import TracingContext

from graphopt.base.errors import CaptureError, UsageError
from graphopt.capture.aot import CaptureRequest, capture_only
from graphopt.capture.captures import Capture, Recaptures, this_capture
from graphopt.capture.changing_sizes import Sizes, fix_sizes
from graphopt.capture.dynamo import compiled, graphopt_errors
from graphopt.capture.local_parameters import read_local_parameters
from graphopt.capture.mends.operators_on_meta import NO_DERIVATIVE
from graphopt.capture.noted_breaks import noted_breaks, nothing_captured
from graphopt.capture.numbers import examples_of
from graphopt.device.storages import local_of
from graphopt.graph.captured_graph import CapturedGraph
from graphopt.graph.joint import JointGraph
from graphopt.graph.roles import DESCRIPTOR, Accumulator, MicroFirst, MicroState
from graphopt.passes.joint import Passes
from graphopt.plan.choice import Choice
from graphopt.plan.other_sizes import GraphAtSizes
from graphopt.plan.planned_graph import PlannedGraph
from graphopt.problem.graph_break import GraphBreak
from graphopt.run.graphs.input_symbols import InputSymbols
from graphopt.run.graphs.met_graph import MOST_GRAPHS
from graphopt.run.model.loss_module import LossModule, wrong_arguments
from graphopt.step.micro_batches.dynamo_outputs import beside_loss, loss_alone
from graphopt.step.micro_batches.micro_graph import Learning, Micro, MicroCall, MicroGraph
from graphopt.step.micro_batches.not_whole import as_not_whole, whole_but_for_data

#: Plans a micro-batch at its sizes.
Plan = Callable[[Micro], PlannedGraph]
#: The passes that decide what becomes of a joint graph's parameters and gradients; what is given for its primals is by
#: their position.
HandOver = Callable[[JointGraph, Mapping[int, Any]], Passes]
#: What is around each call that may capture.
Around = Callable[[], AbstractContextManager[None]]


class Micros:
    """The micro-batch graphs of one model, by what Dynamo guards on.

    `hand_over` gives the passes that decide what becomes of parameters and gradients; `dropped` is told of
    micro-batches that are not kept. `sizes` says which sizes of inputs are symbols, so that one graph serves many.
    `around` is around each call that may capture.
    """

    def __init__(
        self,
        module: LossModule,
        choice: Choice,
        plan: Plan,
        hand_over: HandOver,
        dropped: Callable[[Micro], None],
        sizes: Sizes,
        around: Around = nullcontext,
    ) -> None:
        self._choice, self._plan, self._hand_over, self._around = choice, plan, hand_over, around
        self._module, self._dropped, self._sizes = module, dropped, sizes
        self._called: MicroCall | None = None
        #: The least recently used first, as are `_micros`, which are each of a graph at sizes of its inputs.
        self._graphs: dict[str, MicroGraph] = {}
        self._micros: dict[tuple[str, tuple[int, ...]], Micro] = {}
        self._captures: dict[str, list[Capture]] = {}
        self._recaptures = Recaptures()
        micros = weakref.ref(self)

        def backend(graph: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
            # Dynamo keeps every backend and every graph that there ever was: they must not keep the model
            this = micros()
            assert this is not None
            return this._backend(graph, inputs)

        #: Where the captures of the call that is being made ended.
        self._breaks: list[GraphBreak] = []
        note = self._breaks.append
        self._compiled = compiled(module._call_impl, backend, lambda _code: noted_breaks(note), sizes, whole=True)

    def resolve(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> MicroCall:
        """The graph for these inputs, captured if it is new, and what goes into it.

        What the model's forward does in Python (counting its calls, say) is done; no tensor is computed.
        """
        self._called = None
        self._breaks.clear()
        off = torch._functorch.config.patch(backward_pass_autocast="off")
        with graphopt_errors(), torch.enable_grad(), off, self._around():
            self._run(args, kwargs)
        if self._called is None:
            raise CaptureError(nothing_captured("the model", self._breaks, ""))
        call, self._called = self._called, None
        self._bound()
        return call

    def forget_plans(self) -> None:
        """Graphs are planned anew when they are run."""
        for micro in self._micros.values():
            micro.forget_plan()

    def keep_only(self, planned: PlannedGraph) -> None:
        """Of all that is planned, this is what is run; the graphs stay."""
        for micro in self._micros.values():
            if not (micro.is_planned and micro.planned is planned):
                micro.forget_study()

    def _note(self, key: str, capture: Capture) -> None:
        """One graph may be captured for many states of the model, of which as many are kept as there are graphs."""
        captures = self._captures.setdefault(key, [])
        captures.append(capture)
        if len(captures) > MOST_GRAPHS:
            captures.pop(0).drop()

    def _at_sizes_of(self, key: str, flat: tuple[Any, ...]) -> Micro:
        """A graph at the sizes of these inputs."""
        graph = self._graphs[key] = self._graphs.pop(key)
        sizes = graph.symbols.sizes_of(flat)
        place = key, tuple(sizes.values())
        known = self._micros.pop(place) if place in self._micros else Micro(graph, sizes, self._plan)
        self._micros[place] = known
        return known

    def _bound(self) -> None:
        while len(self._graphs) > MOST_GRAPHS:
            self._drop(next(iter(self._graphs)))
        while len(self._micros) > MOST_GRAPHS:
            self._dropped(self._micros.pop(next(iter(self._micros))))

    def _drop(self, key: str) -> None:
        """This graph is not kept, at none of its sizes."""
        del self._graphs[key]
        for capture in self._captures.pop(key):
            capture.drop()
        for place in [place for place in self._micros if place[0] == key]:
            self._dropped(self._micros.pop(place))

    def _run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        try:
            self._compiled(*args, **kwargs)
        except (Unsupported, UserError) as error:
            if isinstance(error, Unsupported) and (problem := wrong_arguments(self._module, args, kwargs)):
                raise UsageError(problem) from error
            if (plain := as_not_whole(error)) is not None:
                raise plain from error
            raise

    def _backend(self, module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        self._recaptures.tell()
        parameters = {index: item for index, item in enumerate(inputs) if isinstance(item, torch.nn.Parameter)}
        read_local_parameters(module, parameters)
        inputs = list(map(_as_read, inputs))
        trainable = {index: inputs[index] for index in parameters}
        with whole_but_for_data(module):
            fix_sizes(module, self._sizes)
            beside, symbols = beside_loss(module), InputSymbols(module)
            key, micros = self._capture(loss_alone(module), inputs, trainable, symbols), weakref.ref(self)
        self._note(key, this_capture())
        symbols.are_met(module)
        loss = self._graphs[key].loss

        def resolved(*flat: Any) -> tuple[Any, ...]:
            this = micros()
            assert this is not None
            read = tuple(map(_as_read, flat))
            this._called = MicroCall(this._at_sizes_of(key, read), read)
            return (torch.zeros((), dtype=loss.dtype, device=loss.device), *beside(flat))

        return resolved

    def _capture(
        self,
        module: fx.GraphModule,
        inputs: Sequence[Any],
        parameters: Mapping[int, torch.Tensor],
        symbols: InputSymbols,
    ) -> str:
        """Capture a graph, whose inputs at some positions are `parameters`; its key among those that are known."""
        # a graph that may take other forms later keeps parameters: it must not keep the batch, nor all other graphs
        passes_of = self._hand_over

        def hand_over(joint: JointGraph, _static_inputs: Sequence[int]) -> Passes:
            _check_roles(joint)
            indices = [node.meta[DESCRIPTOR].idx for node in joint.primals]
            return passes_of(joint, {at: parameters[i] for at, i in enumerate(indices) if i in parameters})

        examples = examples_of(module)
        choice = self._choice
        options = choice.cost_model, "micro-batch", hand_over
        request = CaptureRequest(
            *(module, examples, *options), compiler=choice.compiler, sizes=self._sizes, tangent_is_known=True
        )
        captured = capture_only(request)
        if captured is None:
            raise UsageError("nothing to train: the loss depends on no parameter that requires a gradient")
        roles = [node.meta[DESCRIPTOR] for node in captured.step.graph_module.graph.find_nodes(op="placeholder")]
        # branches of a model may have the same graph, and learn others
        key = f"{captured.step.graph_hash} {roles} {[id(parameter) for parameter in parameters.values()]}"
        if key not in self._graphs:  # else it was captured before, for another state of the model
            at_sizes, learning = GraphAtSizes(captured, symbols.captured, choice), _learning(captured, inputs)
            if captured.step.device.type == "meta" and not (learning.returned or learning.used):
                raise CaptureError(NO_DERIVATIVE)
            guards = TracingContext.get().fake_mode.shape_env.guards  # type: ignore[union-attr]
            self._graphs[key] = MicroGraph(at_sizes, symbols, learning, guards, len(guards), choice.compiler)
        return key


def _as_read(item: Any) -> Any:
    """What the graph reads of an input: of a DTensor this rank's shard."""
    return local_of(item) if isinstance(item, torch.Tensor) else item


def _learning(captured: CapturedGraph, inputs: Sequence[Any]) -> Learning:
    joint = captured.step.joint
    primals = joint.primals
    returned = [primals[position].meta[DESCRIPTOR].idx for position in joint.gradients]
    roles = [node.meta[DESCRIPTOR] for node in joint.added]
    used = [role.index for role in roles if isinstance(role, (Accumulator, MicroState, MicroFirst))]
    return Learning(tuple(inputs[i] for i in returned), tuple(inputs[i] for i in dict.fromkeys(used)))


def _check_roles(joint: JointGraph) -> None:
    """AOTAutograd changes the calling convention for aliased and mutated inputs; those steps are refused."""
    for node in joint.graph.find_nodes(op="placeholder"):
        if not isinstance(node.meta.get(DESCRIPTOR), (PlainAOTInput, TangentAOTInput)):
            raise CaptureError(
                f"the step's input {node.name} is {node.meta.get(DESCRIPTOR)}: inputs that share memory and are "
                "written, and tensor subclasses, cannot be part of a training step; use graphopt.optimize()"
            )
    described = joint.graph.output_node().meta.get(DESCRIPTOR) or [None]
    if joint.num_forward_outputs != 1 or not isinstance(described[0], PlainAOTOutput):
        raise CaptureError(
            "the step writes to an input that is no plain buffer: a training step cannot hand that back; use "
            "graphopt.optimize()"
        )

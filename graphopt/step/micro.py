"""Micro-batches as graphs: forward, loss and backward of one, with what becomes of its gradients inside.

Dynamo stands in front: for each call it says which graph is right for these inputs and this state of
the model, capturing a new one where none is, and what goes into it. It does not run it: that is left
to the step's own graph, in which all micro-batches of a window stand.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import fx
from torch._dynamo.exc import Unsupported
from torch._functorch._aot_autograd.descriptors import PlainAOTInput, PlainAOTOutput, TangentAOTInput

from graphopt.base.errors import CaptureError, UsageError
from graphopt.capture.aot import CaptureRequest, capture_only
from graphopt.capture.captures import Capture, Recaptures, this_capture
from graphopt.capture.changing_sizes import fix_sizes
from graphopt.capture.dynamo import compiled, graphopt_errors
from graphopt.capture.noted_breaks import in_own_words, in_users_code, noted_breaks, nothing_captured
from graphopt.capture.numbers import examples_of
from graphopt.device.snapshot import generators_kept
from graphopt.emit.emit import emit_whole
from graphopt.graph.captured_graph import CapturedGraph
from graphopt.graph.joint import JointGraph
from graphopt.graph.roles import DESCRIPTOR, Accumulator, MicroFirst, MicroState
from graphopt.lower.compiler import Compiler
from graphopt.lower.halves import LoweredWhole
from graphopt.passes.joint import Passes
from graphopt.plan.choice import Choice
from graphopt.plan.planned_graph import PlannedGraph
from graphopt.problem.graph_break import GraphBreak
from graphopt.run.graphs.met_graph import MOST_GRAPHS
from graphopt.run.model.loss_module import LossModule, wrong_arguments
from graphopt.step.dynamo_outputs import beside_loss, loss_alone

#: Plans a captured micro-batch in which parameters get gradients: those returned, and those the graph uses up itself.
Plan = Callable[[CapturedGraph, "Learning"], PlannedGraph]
#: The passes that decide what becomes of a joint graph's gradients; the parameters to train are by position among
#: its primals.
HandOver = Callable[[JointGraph, Mapping[int, Any]], Passes]


@dataclass(frozen=True)
class Learning:
    """Parameters that get gradients: whose the graph returns, and whose it uses up itself."""

    returned: tuple[torch.Tensor, ...]
    used: tuple[torch.Tensor, ...]


@dataclass(frozen=True, eq=False)
class Micro:
    """A captured micro-batch graph, planned when that is first asked for.

    Its inputs are described by `input_roles`: Dynamo's flat inputs, and ours.
    """

    captured: CapturedGraph
    plan: Callable[[], PlannedGraph]
    compiler: Compiler = "eager"

    @cached_property
    def planned(self) -> PlannedGraph:
        """The graph with its plan; raises BudgetError where it does not fit."""
        with generators_kept():
            return self.plan()

    @property
    def is_planned(self) -> bool:
        """Whether a plan of it was asked for."""
        return "planned" in self.__dict__

    def forget_plan(self) -> None:
        """It is planned anew when that is next asked for."""
        for made in ("planned", "module"):
            self.__dict__.pop(made, None)

    @cached_property
    def module(self) -> fx.GraphModule | LoweredWhole:
        """The graph to run, boxed: (loss, a gradient or None for each of the joint graph's inputs)."""
        with generators_kept():
            emitted = emit_whole(self.captured.step, self.planned.schedule)
            return emitted if self.compiler == "eager" else LoweredWhole(emitted)

    @cached_property
    def input_roles(self) -> tuple[object, ...]:
        """The descriptor of each input, in order: AOTAutograd's, or one of graphopt.graph.roles."""
        return tuple(node.meta[DESCRIPTOR] for node in self._placeholders)

    @cached_property
    def accumulators(self) -> dict[int, torch.Tensor]:
        """Flat input -> the (fake) accumulator of its gradient."""
        roles = ((node.meta[DESCRIPTOR], node.meta["val"]) for node in self._placeholders)
        return {role.index: value for role, value in roles if isinstance(role, Accumulator)}

    @cached_property
    def gradients(self) -> dict[int, int]:
        """Flat input -> position among the graph's outputs of the gradient that is returned for it."""
        joint = self.captured.step.joint
        primals = joint.primals
        return {primals[i].meta[DESCRIPTOR].idx: joint.num_forward_outputs + i for i in joint.gradients}

    @property
    def loss(self) -> torch.Tensor:
        """The (fake) loss."""
        node = self.captured.step.joint.forward_outputs[0]
        assert isinstance(node, fx.Node)
        return node.meta["val"]  # type: ignore[no-any-return]

    @property
    def _placeholders(self) -> list[fx.Node]:
        return list(self.captured.step.graph_module.graph.find_nodes(op="placeholder"))


@dataclass(frozen=True, eq=False)
class MicroCall:
    """A graph, and the tensors that Dynamo hands to it: parameters, buffers and the micro-batch."""

    micro: Micro
    flat: tuple[Any, ...]


class Micros:
    """The micro-batch graphs of one model, by what Dynamo guards on.

    `trained` tells which inputs are parameters to train; `hand_over` gives the passes that decide what
    becomes of their gradients; `dropped` is told of graphs that are not kept.
    """

    def __init__(
        self,
        module: LossModule,
        choice: Choice,
        plan: Plan,
        trained: Callable[[object], bool],
        hand_over: HandOver,
        dropped: Callable[[Micro], None],
    ) -> None:
        self._choice, self._plan, self._trained, self._hand_over = choice, plan, trained, hand_over
        self._module, self._dropped = module, dropped
        self._called: MicroCall | None = None
        #: The least recently used first.
        self._known: dict[object, Micro] = {}
        self._captures: dict[object, list[Capture]] = {}
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
        self._compiled = compiled(module._call_impl, backend, lambda _code: noted_breaks(note), whole=True)

    def resolve(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> MicroCall:
        """The graph for these inputs, captured if it is new, and what goes into it.

        What the model's forward does in Python (counting its calls, say) is done; no tensor is computed.
        """
        self._called = None
        self._breaks.clear()
        off = torch._functorch.config.patch(backward_pass_autocast="off")
        with graphopt_errors(), torch.enable_grad(), off:
            self._run(args, kwargs)
        if self._called is None:
            raise CaptureError(nothing_captured("the model", self._breaks, ""))
        call, self._called = self._called, None
        self._bound()
        return call

    def forget_plans(self) -> None:
        """Graphs are planned anew when they are run."""
        for micro in self._known.values():
            micro.forget_plan()

    def _note(self, key: object, capture: Capture) -> None:
        """One graph may be captured for many states of the model, of which as many are kept as there are graphs."""
        captures = self._captures.setdefault(key, [])
        captures.append(capture)
        if len(captures) > MOST_GRAPHS:
            captures.pop(0).drop()

    def _bound(self) -> None:
        while len(self._known) > MOST_GRAPHS:
            key = next(iter(self._known))
            for capture in self._captures.pop(key):
                capture.drop()
            self._dropped(self._known.pop(key))

    def _run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        try:
            self._compiled(*args, **kwargs)
        except Unsupported as error:
            if problem := wrong_arguments(self._module, args, kwargs):
                raise UsageError(problem) from error
            where = in_users_code(getattr(error, "real_stack", None) or ())
            at, reason = f" at {where}" if where else "", in_own_words(str(error)).removesuffix(".")
            raise CaptureError(
                f"torch.compile cannot capture this training step whole{at}: {reason}. Mend that, or use "
                "graphopt.optimize(), which divides the budget over the pieces of a model that breaks"
            ) from error

    def _backend(self, module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        self._recaptures.tell()
        fix_sizes(module)
        beside = beside_loss(module)
        key, micros = self._capture(loss_alone(module), inputs), weakref.ref(self)
        self._note(key, this_capture())
        loss = self._known[key].loss

        def resolved(*flat: Any) -> tuple[Any, ...]:
            this = micros()
            assert this is not None
            this._known[key] = this._known.pop(key)
            this._called = MicroCall(this._known[key], flat)
            return (torch.zeros((), dtype=loss.dtype, device=loss.device), *beside(flat))

        return resolved

    def _capture(self, module: fx.GraphModule, inputs: Sequence[Any]) -> object:
        """Capture a graph; its key among those that are known."""

        def hand_over(joint: JointGraph, _static_inputs: Sequence[int]) -> Passes:
            _check_roles(joint)
            given = {position: inputs[node.meta[DESCRIPTOR].idx] for position, node in enumerate(joint.primals)}
            trained = {position: item for position, item in given.items() if self._trained(item)}
            return self._hand_over(joint, trained)

        examples = examples_of(module)
        choice = self._choice
        request = CaptureRequest(
            module, examples, choice.cost_model, "micro-batch", hand_over, compiler=choice.compiler
        )
        captured = capture_only(request)
        if captured is None:
            raise UsageError("nothing to train: the loss depends on no parameter that requires a gradient")
        return self._key_of(captured, inputs)

    def _key_of(self, captured: CapturedGraph, inputs: Sequence[Any]) -> object:
        """The key of a graph to be planned; one that was captured before, for another state of the model, is known."""
        inputs_of_graph = captured.step.graph_module.graph.find_nodes(op="placeholder")
        key = captured.step.graph_hash, tuple(node.meta[DESCRIPTOR] for node in inputs_of_graph)
        if key not in self._known:
            learning = _learning(captured, inputs)
            self._known[key] = Micro(captured, lambda: self._plan(captured, learning), self._choice.compiler)
        return key


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

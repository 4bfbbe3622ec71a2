"""Micro-batches as graphs: forward, loss and backward of one, with what becomes of its gradients inside.

Dynamo stands in front: for each call it says which graph is right for these inputs and this state of
the model, capturing a new one where none is, and what goes into it. It does not run it: that is left
to the step's own graph, in which all micro-batches of a window stand.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import fx, nn
from torch._dynamo.exc import Unsupported
from torch._functorch._aot_autograd.descriptors import PlainAOTInput, PlainAOTOutput, TangentAOTInput

from graphopt.base.errors import CaptureError, UsageError
from graphopt.capture.aot import CaptureRequest, capture_only
from graphopt.capture.dynamo import dynamo_errors, own_frame
from graphopt.capture.skipped import Since, nothing_captured
from graphopt.emit.emit import emit_whole
from graphopt.graph.captured_graph import CapturedGraph
from graphopt.graph.joint import JointGraph
from graphopt.graph.nodes import source_line
from graphopt.graph.roles import DESCRIPTOR, Accumulator, MicroFirst, MicroState
from graphopt.passes.joint import Passes
from graphopt.plan.planned_graph import PlannedGraph

#: Captures of one and the same graph after which something is wrong.
_TOO_OFTEN = 8

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

    @cached_property
    def planned(self) -> PlannedGraph:
        """The graph with its plan; raises BudgetError where it does not fit."""
        return self.plan()

    @property
    def is_planned(self) -> bool:
        """Whether a plan of it was asked for."""
        return "planned" in self.__dict__

    @cached_property
    def module(self) -> fx.GraphModule:
        """The graph to run, boxed: (loss, a gradient or None for each of the joint graph's inputs)."""
        return emit_whole(self.captured.step, self.planned.schedule)

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
    becomes of their gradients.
    """

    def __init__(
        self, module: nn.Module, cost_model: str, plan: Plan, trained: Callable[[object], bool], hand_over: HandOver
    ) -> None:
        self._cost_model, self._plan, self._trained, self._hand_over = cost_model, plan, trained, hand_over
        self._called: MicroCall | None = None
        self._known: dict[object, Micro] = {}
        self._again = 0
        micros = weakref.ref(self)

        def backend(graph: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
            # Dynamo keeps every backend and every graph that there ever was: they must not keep the model
            this = micros()
            assert this is not None
            return this._backend(graph, inputs)

        self._compiled = torch.compile(own_frame(module._call_impl), backend=backend, dynamic=False, fullgraph=True)

    def resolve(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> MicroCall:
        """The graph for these inputs, captured if it is new, and what goes into it.

        What the model's forward does in Python (counting its calls, say) is done; no tensor is computed.
        """
        self._called, since = None, Since()
        with dynamo_errors(), torch.enable_grad(), torch._functorch.config.patch(backward_pass_autocast="off"):
            self._run(args, kwargs)
        if self._called is None:
            raise CaptureError(nothing_captured("the model", "", since))
        call, self._called = self._called, None
        return call

    def _run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        try:
            self._compiled(*args, **kwargs)
        except Unsupported as error:
            frames = getattr(error, "real_stack", None)
            where = f" at {frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""
            raise CaptureError(
                f"torch.compile cannot capture this training step whole{where}: {str(error).splitlines()[0]}. Mend "
                "that, or use graphopt.optimize(), which divides the budget over the pieces of a model that breaks"
            ) from error

    def _backend(self, module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        kept = _kept_inputs(module)
        key, micros = self._capture(_loss_alone(module), inputs), weakref.ref(self)
        loss = self._known[key].loss

        def resolved(*flat: Any) -> tuple[Any, ...]:
            this = micros()
            assert this is not None
            this._called = MicroCall(this._known[key], flat)
            return (torch.zeros((), dtype=loss.dtype, device=loss.device), *(flat[i] for i in kept))

        return resolved

    def _capture(self, module: fx.GraphModule, inputs: Sequence[Any]) -> object:
        """Capture a graph; its key among those that are known."""

        def hand_over(joint: JointGraph, _static_inputs: Sequence[int]) -> Passes:
            _check_roles(joint)
            given = {position: inputs[node.meta[DESCRIPTOR].idx] for position, node in enumerate(joint.primals)}
            trained = {position: item for position, item in given.items() if self._trained(item)}
            return self._hand_over(joint, trained)

        examples = [node.meta["example_value"] for node in module.graph.find_nodes(op="placeholder")]
        captured = capture_only(CaptureRequest(module, examples, self._cost_model, "micro-batch", hand_over))
        if captured is None:
            raise UsageError("nothing to train: the loss depends on no parameter that requires a gradient")
        return self._key_of(captured, inputs)

    def _key_of(self, captured: CapturedGraph, inputs: Sequence[Any]) -> object:
        """The key of a graph to be planned; one that was captured before, for another state of the model, is known."""
        inputs_of_graph = captured.step.graph_module.graph.find_nodes(op="placeholder")
        key = captured.step.graph_hash, tuple(node.meta[DESCRIPTOR] for node in inputs_of_graph)
        if key not in self._known:
            learning = _learning(captured, inputs)
            self._known[key] = Micro(captured, lambda: self._plan(captured, learning))
            return key
        self._again += 1
        if self._again == _TOO_OFTEN:
            warnings.warn(
                f"the model was captured {_TOO_OFTEN} times again, each time as the same graph: its forward reads "
                "something that changes at every call, such as a Python counter (TORCH_LOGS=recompiles shows what); "
                "make it a buffer, as capturing takes seconds",
                stacklevel=2,
            )
        return key


def _learning(captured: CapturedGraph, inputs: Sequence[Any]) -> Learning:
    joint = captured.step.joint
    primals = joint.primals
    returned = [primals[position].meta[DESCRIPTOR].idx for position in joint.gradients]
    roles = [node.meta[DESCRIPTOR] for node in joint.added]
    used = [role.index for role in roles if isinstance(role, (Accumulator, MicroState, MicroFirst))]
    return Learning(tuple(inputs[i] for i in returned), tuple(inputs[i] for i in dict.fromkeys(used)))


def _kept_inputs(module: fx.GraphModule) -> list[int]:
    """What Dynamo's graph returns beside the loss, as positions of inputs: buffers that the forward writes in place.

    Raises UsageError for a loss that is no single number, CaptureError where a tensor that is computed leaves the step.
    """
    (returned,) = module.graph.output_node().args
    assert isinstance(returned, (tuple, list))
    values = [node.meta["example_value"] if isinstance(node, fx.Node) else None for node in returned]
    loss = values[0]
    if isinstance(loss, torch.Tensor) and loss.numel() == 0:
        raise UsageError("the step has no loss: give loss_fn, or a model that returns its loss (or has it as .loss)")
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1 or not loss.is_floating_point():
        found = tuple(loss.shape) if isinstance(loss, torch.Tensor) else type(returned[0]).__name__
        raise UsageError(f"the loss must be a single number to be differentiated, got {found}; reduce it with .mean()")
    inputs = [node.meta["example_value"] for node in module.graph.find_nodes(op="placeholder")]
    position = {id(value): i for i, value in enumerate(inputs)}
    for node, value in zip(returned[1:], values[1:], strict=True):
        if id(value) not in position:
            where = source_line(node) if isinstance(node, fx.Node) else ""
            raise CaptureError(
                f"the model keeps a tensor that it computes{' at ' + where if where else ''} (in an attribute, a list "
                "or a closure): a training step returns its loss alone, so remove it, or use graphopt.optimize()"
            )
    return [position[id(value)] for value in values[1:]]


def _loss_alone(module: fx.GraphModule) -> fx.GraphModule:
    """Dynamo's graph, returning nothing but the loss."""
    (returned,) = module.graph.output_node().args
    if len(returned) > 1:  # type: ignore[arg-type]
        module.graph.output_node().args = ((returned[0],),)  # type: ignore[index]
        module.recompile()
    return module


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

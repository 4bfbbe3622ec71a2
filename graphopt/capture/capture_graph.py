"""The joint graph of a step made ready to plan: cleaned by passes, read as ops and values, priced."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import fx

from graphopt.base.errors import CaptureError
from graphopt.capture.read_joint import build_step_graph
from graphopt.capture.tangents import ChooseTangents, all_tangents
from graphopt.cost_models import COST_MODELS, OpCost
from graphopt.emit.whole_backward import kept_for_whole
from graphopt.graph.captured_graph import CapturedGraph, Divisible, Forms, WholeBackward
from graphopt.graph.fingerprint import hash_with_tangents
from graphopt.graph.joint import JointGraph, copy_joint
from graphopt.graph.nodes import is_collective
from graphopt.graph.roles import PRICE
from graphopt.graph.step_graph import StepGraph, to_problem, with_storage_bytes
from graphopt.passes.joint import CLEANING, RETURN_GRADIENTS, Passes, in_pieces, summing_in_place, with_tangents
from graphopt.passes.joint.chunks.chunk import division
from graphopt.passes.run_passes import run_passes
from graphopt.problem.pieces import WHOLE, Pieces
from graphopt.problem.problem import Problem

#: The passes that decide what becomes of a joint graph's gradients; given are the positions of parameters and buffers.
HandOver = Callable[[JointGraph, Sequence[int]], Passes]


#: Finds the ops of a joint graph whose results are never stored.
FindVirtual = Callable[[JointGraph], frozenset[fx.Node]]


def none_is_virtual(_joint: JointGraph) -> frozenset[fx.Node]:
    """Every result is stored, as where each op is a kernel of its own."""
    return frozenset()


def return_all(_joint: JointGraph, _static_inputs: Sequence[int]) -> Passes:
    """Every gradient is returned."""
    return RETURN_GRADIENTS


def capture_graph(
    joint: JointGraph,
    static_inputs: list[int],
    cost_model: str,
    name: str,
    break_reason: str = "",
    hand_over: HandOver = return_all,
    tangents: ChooseTangents | None = None,
    virtual: FindVirtual = none_is_virtual,
    *,
    tangent_is_known: bool = False,
) -> CapturedGraph:
    """Make AOTAutograd's joint graph ready to plan: cleaned, read as ops and values, priced.

    `hand_over` gives the passes that decide what becomes of the gradients; they run behind the cleaning ones.
    `tangents` chooses those that the backward is made for; None: all. `virtual` finds the ops whose results are never
    stored. With `tangent_is_known` a form of the graph may read its tangent in the forward.
    """
    _check_gradients(joint)
    run_passes(joint, CLEANING)
    making = _Making(static_inputs, cost_model, hand_over, tangents, virtual)
    if virtual is not none_is_virtual:
        return CapturedGraph(name, break_reason, *making.priced(joint, ()))
    clean = copy_joint(joint)
    step, problem, whole = making.priced(joint, ())
    captured = CapturedGraph(name, break_reason, step, problem, whole)
    planned = frozenset(i for i, node in enumerate(step.joint.tangents) if node in step.joint.defined_tangents)
    alike = replace(making, tangents=None if tangents is None else lambda _step: planned)

    def form(pieces: Pieces) -> CapturedGraph:
        divided, problem, whole = alike.priced(copy_joint(clean), in_pieces(pieces, tangent_is_known=tangent_is_known))
        divided = replace(divided, graph_hash=step.graph_hash)
        return CapturedGraph(name, break_reason, divided, problem, whole, pieces, forms)

    forms = Forms(
        lambda: _division(clean, planned, tangent_is_known),
        max((value.bytes for value in step.values if value.kind == "activations"), default=0),
        lambda pieces: form(pieces) if pieces != WHOLE else replace(captured, forms=forms),
    )
    return replace(captured, forms=forms)


@dataclass(frozen=True)
class _Making:
    """What becomes of a cleaned joint graph, whichever its form."""

    static_inputs: list[int]
    cost_model: str
    hand_over: HandOver
    tangents: ChooseTangents | None
    virtual: FindVirtual

    def hands_over(self, joint: JointGraph, static_inputs: Sequence[int]) -> Passes:
        """The passes that decide what becomes of the gradients."""
        passes = self.hand_over(joint, static_inputs)
        # a compiler that makes kernels of its own wants a functional graph, and reuses memory as it sees fit
        return summing_in_place(passes) if self.virtual is none_is_virtual else passes

    def priced(self, joint: JointGraph, rewriting: Passes) -> tuple[StepGraph, Problem, WholeBackward | None]:
        """The graph as ops and values with their prices, and with all tangents where it has fewer."""
        static_inputs, virtual = self.static_inputs, self.virtual
        if self.tangents is None or len(joint.tangents) < 2:
            run_passes(joint, (*rewriting, *self.hands_over(joint, static_inputs)))
            step, whole = build_step_graph(joint, static_inputs, virtual(joint)), None
        else:
            step, whole = _chosen(joint, static_inputs, self.hands_over, self.tangents, virtual, rewriting)
        estimated = COST_MODELS[self.cost_model](step.compute_nodes)
        costs = [_known(node) or cost for node, cost in zip(step.compute_nodes, estimated, strict=True)]
        _warn_of_unmeasured(step, costs, self.cost_model)
        step = with_storage_bytes(step, [cost.storage_bytes for cost in costs])
        problem = to_problem(step, [cost.seconds for cost in costs], [cost.workspace_bytes for cost in costs])
        return step, problem, whole


def _division(clean: JointGraph, planned: frozenset[int], tangent_is_known: bool) -> Divisible:
    """The pieces of a graph whose backward is made for the tangents that are planned for."""
    if len(planned) < len(clean.tangents):
        clean = copy_joint(clean)
        run_passes(clean, (with_tangents(planned),))
    return division(clean, tangent_is_known=tangent_is_known)


def _known(node: fx.Node) -> OpCost | None:
    """The cost of an op that cannot be run alone, where a pass knows it."""
    return OpCost(*node.meta[PRICE]) if PRICE in node.meta else None


def _check_gradients(joint: JointGraph) -> None:
    pairs = zip(joint.places, joint.backward_outputs, strict=True)
    if any(place is None and isinstance(returned, fx.Node) for place, returned in pairs):
        raise CaptureError(
            "the gradient of a plain tensor is a subclass of torch.Tensor that holds several, as an input is one: "
            "nothing says whose gradient each is; give the model plain tensors"
        )


def _chosen(
    joint: JointGraph,
    static_inputs: list[int],
    hand_over: HandOver,
    choose: ChooseTangents,
    virtual: FindVirtual,
    rewriting: Passes,
) -> tuple[StepGraph, WholeBackward | None]:
    """The step with the tangents that are chosen, beside it with all of them, which returns its gradients."""
    own = copy_joint(joint)
    returned = return_all(joint, static_inputs)
    run_passes(joint, summing_in_place(returned) if virtual is none_is_virtual else returned)
    step = build_step_graph(joint, static_inputs, virtual(joint))
    defined = choose(step)
    has_all = defined == all_tangents(joint)
    if not has_all:
        run_passes(own, (with_tangents(defined),))
    run_passes(own, (*rewriting, *hand_over(own, static_inputs)))
    if has_all and not own.added:
        return (build_step_graph(own, static_inputs, virtual(own)) if rewriting else step), None
    kept = kept_for_whole(step, own)
    fewer = build_step_graph(own, static_inputs, virtual(own))
    values = [fewer.home[node] for node in own.graph.nodes if node.name in kept]
    graph_hash = fewer.graph_hash if own.added else hash_with_tangents(step.graph_hash, defined)
    fewer = replace(fewer, outputs=tuple(dict.fromkeys((*fewer.outputs, *values))), graph_hash=graph_hash)
    return fewer, WholeBackward(step, kept)


def _warn_of_unmeasured(step: StepGraph, costs: Sequence[OpCost], cost_model: str) -> None:
    """Say so where a plan's bytes are a guess: an op that was not measured may need scratch that nobody counts."""
    nodes = step.compute_nodes
    talks = [is_collective(node) or PRICE in node.meta for node in nodes]
    unmeasured = [i for i, cost in enumerate(costs) if cost.storage_bytes is None and not talks[i]]
    if not unmeasured or cost_model == "roofline" or len(unmeasured) == len(costs):
        return
    ops = [op for op in step.ops if op.node is not None]
    first = next((ops[i] for i in unmeasured if ops[i].source), ops[unmeasured[0]])
    where = f" at {first.source}" if first.source else ""
    warnings.warn(
        f"graphopt: {len(unmeasured)} of {len(costs)} ops could not be measured, first {first.name}{where}; their "
        "scratch memory is not in the plan, so keep a reserve",
        stacklevel=2,
    )

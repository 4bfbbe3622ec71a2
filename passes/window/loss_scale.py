"""Pass: the loss is scaled before the backward, and gradients that overflowed do not update anything.

1/scale and the finding are folded into the update, which reads the gradients anyway; the finite check
is part of the read that takes the norm. The scale moves last, when everything else has read it.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from graphopt import kernels
from graphopt.base.errors import UsageError
from graphopt.graph.roles import ROLE, Norm, Scaling, Tangent, Update, add_input, find_input, set_outputs, with_role

aten = torch.ops.aten


@dataclass(frozen=True)
class ConstantLossScale:
    """The loss is multiplied by `scale` for the backward; a step that overflows is skipped."""

    scale: float = 2.0**16

    def __post_init__(self) -> None:
        _check_scale("ConstantLossScale", self.scale)

    @property
    def initial(self) -> float:
        """The scale of the first step."""
        return self.scale


@dataclass(frozen=True)
class DynamicLossScale:
    """A scale that falls when gradients overflow and grows while they do not, as `torch.amp.GradScaler`'s.

    An overflow skips the step, and the `hysteresis`-th of them (a good step fills that up again when the
    scale grows) multiplies the scale by `backoff`, down to `lowest`; `interval` good steps on end multiply
    it by `growth`, up to `highest`.
    """

    initial: float = 2.0**16
    growth: float = 2.0
    backoff: float = 0.5
    interval: int = 2000
    hysteresis: int = 1
    lowest: float = 2.0**-24
    highest: float = 2.0**24

    def __post_init__(self) -> None:
        _check_scale("DynamicLossScale", self.initial)
        wrong = {
            "growth must be greater than 1": not self.growth > 1,
            "backoff must lie between 0 and 1": not 0 < self.backoff < 1,
            "interval must be at least 1": self.interval < 1,
            "hysteresis must be at least 1": self.hysteresis < 1,
            "initial must lie between lowest and highest": not 0 < self.lowest <= self.initial <= self.highest,
        }
        for what, is_wrong in wrong.items():
            if is_wrong:
                raise UsageError(f"DynamicLossScale: {what}; got {self}")


LossScale = ConstantLossScale | DynamicLossScale


def loss_scale(window: fx.GraphModule, how: LossScale) -> bool:
    """Scale the window's losses and unscale what its update nodes read; True where it was not done yet.

    The window then returns `found_inf`, 1.0 where a gradient was not finite and nothing was updated.
    """
    graph = window.graph
    updates = list(with_role(graph, Update))
    if not updates or any("found_inf" in node.kwargs for node in updates):
        return False
    scale = find_input(graph, Scaling("scale")) or add_input(graph, "scale", Scaling("scale"))
    for node in with_role(graph, Tangent):
        _scale_tangent(graph, node, scale)
    with graph.inserting_before(_first_reader(graph, updates)):
        found_inf = _add_check(graph, updates)
        inverse = inverse_of(graph, scale)
        for norm in with_role(graph, Norm):
            _unscale_norm(graph, norm, inverse)
    for node in updates:
        node.kwargs = {**node.kwargs, "inverse_scale": inverse, "found_inf": found_inf}
    if isinstance(how, DynamicLossScale):
        _add_scale_update(graph, how, scale, found_inf)
    set_outputs(graph, found_inf=found_inf)
    window.recompile()
    return True


def inverse_of(graph: fx.Graph, scale: fx.Node) -> fx.Node:
    """1/scale in float32, written where the graph is being written."""
    # in double: the reciprocal of a float32 that is no power of two is rounded once, as GradScaler's is
    double = graph.call_function(aten._to_copy.default, (scale,), {"dtype": torch.float64})
    reciprocal = graph.call_function(aten.reciprocal.default, (double,))
    return graph.call_function(aten._to_copy.default, (reciprocal,), {"dtype": torch.float32})


def _scale_tangent(graph: fx.Graph, tangent: fx.Node, scale: fx.Node) -> None:
    """scale × weight, in float32 and then in the loss's dtype."""
    dtype = tangent.kwargs["dtype"]
    with graph.inserting_before(tangent):
        scaled = graph.call_function(aten.mul.Tensor, (scale, tangent.args[0]))
        if dtype != torch.float32:
            scaled = graph.call_function(aten._to_copy.default, (scaled,), {"dtype": dtype})
    scaled.meta[ROLE] = tangent.meta[ROLE]
    tangent.replace_all_uses_with(scaled)
    graph.erase_node(tangent)


def _first_reader(graph: fx.Graph, updates: list[fx.Node]) -> fx.Node:
    """The first node that reads a norm, or else the first update."""
    readers = {user for norm in with_role(graph, Norm) for user in norm.users} | {updates[0]}
    found: fx.Node = next(node for node in graph.nodes if node in readers)
    return found


def _add_check(graph: fx.Graph, updates: list[fx.Node]) -> fx.Node:
    """1.0 if any gradient of the window is not finite; from the norms' read where there are norms."""
    reads = [norm.args[0] for norm in with_role(graph, Norm)]
    if not reads:
        gradients = [gradient for node in updates for gradient in node.kwargs["gradients"]]  # type: ignore[union-attr]
        reads = [graph.call_function(kernels.gradient_norm, (gradients, math.inf))]
    flags = [graph.call_function(operator.getitem, (read, 1)) for read in reads]
    found_inf = flags[0]
    for flag in flags[1:]:
        found_inf = graph.call_function(aten.maximum.default, (found_inf, flag))
    return found_inf


def _unscale_norm(graph: fx.Graph, norm: fx.Node, inverse: fx.Node) -> None:
    unscaled = graph.call_function(aten.mul.Tensor, (norm, inverse))
    norm.replace_all_uses_with(unscaled, delete_user_cb=lambda user: user is not unscaled)
    unscaled.meta[ROLE] = norm.meta.pop(ROLE)


def _add_scale_update(graph: fx.Graph, how: DynamicLossScale, scale: fx.Node, found_inf: fx.Node) -> None:
    trackers = [add_input(graph, key, Scaling(key)) for key in ("growth_tracker", "hysteresis_tracker")]
    limits: dict[str, Any] = {
        "growth": how.growth,
        "backoff": how.backoff,
        "interval": how.interval,
        "hysteresis": how.hysteresis,
        "lowest": how.lowest,
        "highest": how.highest,
    }
    with graph.inserting_before(graph.output_node()):
        graph.call_function(kernels.scale_update_, (scale, *trackers, found_inf), limits)


def _check_scale(name: str, scale: float) -> None:
    if not 0 < scale < math.inf:
        raise UsageError(f"{name}: the scale must be a finite positive number, got {scale!r}")

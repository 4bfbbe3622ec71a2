"""Pass: gradients are clipped by their norm or by value, in the very read that updates the parameters.

The norm is taken in one read of the gradients as they are; what follows from it is a factor for the
update, never another pass over them.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch import fx

from graphopt import kernels
from graphopt.base.errors import NonFiniteGradientError, UsageError
from graphopt.graph.roles import ROLE, Norm, Update, set_outputs, with_role
from graphopt.kernels.tail.clip_factor import clip_factor

aten = torch.ops.aten
_ops = torch.ops.graphopt

_library = torch.library.Library("graphopt", "FRAGMENT")
_library.define("require_finite(Tensor norm) -> ()")
_library.define("clip_factor(Tensor norm, float max_norm) -> Tensor")


def _require_finite(norm: torch.Tensor) -> None:
    if not torch.isfinite(norm):
        raise NonFiniteGradientError(
            f"the norm of the gradients is {float(norm)}: parameters and optimizer are as they were before this step. "
            "To go on with such gradients set error_if_nonfinite=False; to skip them use a loss scale"
        )


_library.impl("require_finite", _require_finite, "CompositeExplicitAutograd")
_library.impl("clip_factor", clip_factor, "CompositeExplicitAutograd")


@dataclass(frozen=True)
class ClipNorm:
    """Scale gradients so that their norm is at most `max_norm`, as `torch.nn.utils.clip_grad_norm_` does.

    The norm is that of all gradients together, or of each parameter group's (`per_group`), unscaled.
    `norm_type` is any p > 0, or inf. With `error_if_nonfinite` a norm that is not finite raises
    NonFiniteGradientError before anything is written.
    """

    max_norm: float
    norm_type: float = 2.0
    per_group: bool = False
    error_if_nonfinite: bool = False

    def __post_init__(self) -> None:
        if not self.max_norm > 0:
            raise UsageError(f"ClipNorm: max_norm must be a positive number, got {self.max_norm!r}")
        if not self.norm_type > 0:
            raise UsageError(f"ClipNorm: norm_type must be a positive number or inf, got {self.norm_type!r}")


@dataclass(frozen=True)
class ClipValue:
    """Limit each element of the (unscaled) gradients to ±`value`, as `torch.nn.utils.clip_grad_value_` does."""

    value: float

    def __post_init__(self) -> None:
        if not self.value > 0:
            raise UsageError(f"ClipValue: value must be a positive number, got {self.value!r}")


Clip = ClipNorm | ClipValue


def clip(window: fx.GraphModule, how: Clip) -> bool:
    """Clip what the window's update nodes read; True where there is one that was not clipped yet.

    With ClipNorm the window returns the norm before clipping: of all gradients, or a vector of the groups'.
    """
    graph = window.graph
    updates = [n for n in with_role(graph, Update) if not {"factor", "clip_value"} & set(n.kwargs)]
    if not updates:
        return False
    if isinstance(how, ClipValue):
        for node in updates:
            node.kwargs = {**node.kwargs, "clip_value": how.value}
    else:
        _clip_by_norm(graph, updates, how)
    window.recompile()
    return True


def _clip_by_norm(graph: fx.Graph, updates: list[fx.Node], how: ClipNorm) -> None:
    groups: dict[int | None, list[fx.Node]] = {}
    for node in updates:
        groups.setdefault(node.meta[ROLE].group if how.per_group else None, []).append(node)
    # all norms are known, and found finite, before the first update writes anything
    with graph.inserting_before(updates[0]):
        norms = {group: _add_norm(graph, nodes, group, how) for group, nodes in groups.items()}
        if how.error_if_nonfinite:
            for norm in norms.values():
                graph.call_function(_ops.require_finite.default, (norm,))
        for group, nodes in groups.items():
            factor = graph.call_function(_ops.clip_factor.default, (norms[group], how.max_norm))
            for node in nodes:
                node.kwargs = {**node.kwargs, "factor": factor}
        found = list(norms.values())
        norm = graph.call_function(aten.stack.default, (found,)) if how.per_group else found[0]
    set_outputs(graph, norm=norm)


def _add_norm(graph: fx.Graph, updates: list[fx.Node], group: int | None, how: ClipNorm) -> fx.Node:
    gradients = [gradient for node in updates for gradient in node.kwargs["gradients"]]  # type: ignore[union-attr]
    both = graph.call_function(kernels.gradient_norm, (gradients, float(how.norm_type)))
    norm = graph.call_function(operator.getitem, (both, 0))
    norm.meta[ROLE] = Norm(group)
    return norm

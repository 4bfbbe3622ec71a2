"""Pass: the optimizer's step as nodes of the window's graph, on the optimizer's own state.

SGD, Adam and AdamW become one fused op for each parameter group (`graphopt::sgd_`, `graphopt::adam_`);
for every other optimizer the graph hands the finished gradients over to its `step()`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx

from graphopt import kernels
from graphopt.graph.roles import (
    DESCRIPTOR,
    ROLE,
    Given,
    Master,
    OptimizerOption,
    OptimizerState,
    Update,
    WindowGradient,
    add_input,
    as_name,
    set_outputs,
    with_role,
)

_ops = torch.ops.graphopt

_library = torch.library.Library("graphopt", "FRAGMENT")
_library.define(
    "finish_gradients_(Tensor(a!)[] gradients, Tensor? inverse_scale=None, Tensor? factor=None, "
    "Tensor? found_inf=None, *, float? clip_value=None) -> ()"
)


def _finish_gradients_(
    gradients: list[torch.Tensor],
    inverse_scale: torch.Tensor | None = None,
    factor: torch.Tensor | None = None,
    found_inf: torch.Tensor | None = None,
    *,
    clip_value: float | None = None,
) -> None:
    """What `adam_` does with its gradients, for an optimizer that reads them itself; it is not called on overflow."""
    del found_inf
    with torch.no_grad():
        if inverse_scale is not None:
            torch._foreach_mul_(gradients, inverse_scale)
        if clip_value is not None:
            torch._foreach_clamp_min_(gradients, -clip_value)
            torch._foreach_clamp_max_(gradients, clip_value)
        if factor is not None:
            torch._foreach_mul_(gradients, factor)


_library.impl("finish_gradients_", _finish_gradients_, "CompositeExplicitAutograd")


#: Tensors of state by kind of update, in the order of the op's arguments.
STATE = {"adam": ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "step"), "sgd": ("momentum_buffer",)}
NUMBERS = {
    "adam": ("lr", "beta1", "beta2", "weight_decay", "eps"),
    "sgd": ("lr", "momentum", "dampening", "weight_decay"),
}
#: By kind of update, and whether the state is elsewhere.
TARGETS = {
    ("adam", False): kernels.adam_,
    ("adam", True): kernels.stream_adam_,
    ("sgd", False): kernels.sgd_,
    ("sgd", True): kernels.stream_sgd_,
}


@dataclass(frozen=True)
class GroupUpdate:
    """How one parameter group is updated: "adam", "sgd" or "step" (by the optimizer itself).

    `parameters` are names; of them those that have a gradient are updated. `flags` are the op's
    booleans, `state` the keys that the state has, `masters` the parameters with float32 masters. The state of those
    `elsewhere` comes in blocks of `block_elements`.
    """

    group: int
    kind: str
    parameters: tuple[str, ...]
    flags: tuple[tuple[str, bool], ...] = ()
    state: tuple[str, ...] = ()
    masters: frozenset[str] = frozenset()
    elsewhere: frozenset[str] = frozenset()
    block_elements: int = 0

    def of(self, name: str) -> GroupUpdate:
        """How one of its parameters is updated by itself."""
        return replace(self, parameters=(name,), elsewhere=self.elsewhere & {name})

    def alike(self, names: Sequence[str]) -> list[tuple[str, ...]]:
        """Of these parameters, those that one op updates: with masters or not, with their state here or elsewhere."""
        parts: dict[tuple[bool, bool], list[str]] = {}
        for name in names:
            parts.setdefault((name in self.masters, name in self.elsewhere), []).append(name)
        return [tuple(parts[key]) for key in sorted(parts)]


def update(window: fx.GraphModule, groups: Sequence[GroupUpdate]) -> bool:
    """Update each group's parameters at the end of the window; True where there is one to update.

    A window that updates already is left as it is. Gradients that the graph uses up are not returned.
    """
    graph = window.graph
    gradients = {node.meta[ROLE].parameter: node for node in with_role(graph, WindowGradient)}
    if any(with_role(graph, Update)):
        return False
    left: list[fx.Node] = []
    changed = False
    for group in groups:
        names = [name for name in group.parameters if name in gradients]
        if not names:
            continue
        changed = True
        nodes = [gradients[name] for name in names]
        if group.kind == "step":
            with graph.inserting_before(graph.output_node()):
                made = graph.call_function(_ops.finish_gradients_.default, (), {"gradients": nodes})
            made.meta[ROLE] = Update(group.group)
            left += nodes
        else:
            _add_fused(graph, group, names, nodes)
    if changed:
        set_outputs(graph, gradients=left)
        window.recompile()
    return changed


def _add_fused(graph: fx.Graph, group: GroupUpdate, names: list[str], gradients: list[fx.Node]) -> None:
    """One op for each kind of parameter that the group has."""
    gradient_of = dict(zip(names, gradients, strict=True))
    for chosen in group.alike(names):
        is_half, is_elsewhere = chosen[0] in group.masters, chosen[0] in group.elsewhere
        parameters = [_parameter(graph, name) for name in chosen]
        masters = [add_input(graph, f"master_{as_name(name)}", Master(name)) for name in chosen if is_half]
        numbers = {key: _option(graph, group.group, key) for key in NUMBERS[group.kind]}
        states = {
            key: [add_input(graph, f"{key}_{as_name(n)}", OptimizerState(n, key)) for n in chosen if key in group.state]
            for key in STATE[group.kind]
        }
        arguments = {
            "params": masters or parameters,
            "gradients": [gradient_of[name] for name in chosen],
            **{f"{key}s": nodes for key, nodes in states.items()},
            "copies": parameters if is_half else [],
        }
        blocks = {"block_elements": group.block_elements} if is_elsewhere else {}
        with graph.inserting_before(graph.output_node()):
            made = graph.call_function(
                TARGETS[group.kind, is_elsewhere], (), {**arguments, **numbers, **dict(group.flags), **blocks}
            )
        made.meta[ROLE] = Update(group.group)


def _option(graph: fx.Graph, group: int, key: str) -> fx.Node:
    descriptor = OptimizerOption(group, key)
    found: list[fx.Node] = [n for n in graph.find_nodes(op="placeholder") if n.meta[DESCRIPTOR] == descriptor]
    return found[0] if found else add_input(graph, f"{key}_of_group_{group}", descriptor)


def _parameter(graph: fx.Graph, name: str) -> fx.Node:
    given = ((node, node.meta[DESCRIPTOR]) for node in graph.find_nodes(op="placeholder"))
    found: fx.Node = next(node for node, role in given if isinstance(role, Given) and role.name == name)
    return found

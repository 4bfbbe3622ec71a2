"""The graph of a whole training step: the micro-batches of a window one after the other, and their mean loss.

It is a GraphModule in which every micro-batch's planned graph is a submodule; passes add what is done
with the gradients. It returns (loss, norm, found_inf, gradients); without passes only loss and gradients.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch._functorch._aot_autograd.descriptors import PlainAOTInput, TangentAOTInput
from torch.fx.graph import _BoxedCodeGen

from graphopt.graph.roles import (
    ROLE,
    Accumulator,
    Beta,
    Draw,
    First,
    Given,
    Kept,
    KnownTangent,
    MicroFirst,
    MicroKept,
    MicroOption,
    MicroScale,
    MicroState,
    OptimizerOption,
    OptimizerState,
    Overflow,
    Scaling,
    SummedGradient,
    Tangent,
    Weight,
    WindowGradient,
    add_input,
    as_name,
    find_input,
)
from graphopt.passes.window.loss_scale import inverse_of
from graphopt.step.micro_batches.micro_graph import MicroCall

aten = torch.ops.aten
_c10d = torch.ops._c10d_functional
_ops = torch.ops.graphopt
SCALE = Scaling("scale")


def window_key(calls: Sequence[MicroCall], parameters: Mapping[int, str]) -> tuple[object, ...]:
    """Equal for windows that one graph serves: micro-batches with the same code, the same tensors shared among them.

    Parameters, whose names these are by `id`, must be the same ones too: branches of a model may have the same code.
    """
    number: dict[object, int] = {}
    pattern = tuple(number.setdefault(identity, len(number)) for identity, _ in _given(calls))
    named = tuple(parameters.get(id(item)) for item in dict(_given(calls)).values())
    return (*(call.micro.module for call in calls), pattern, named)


def given_tensors(calls: Sequence[MicroCall]) -> list[object]:
    """The distinct things that Dynamo hands to the micro-batches, in the order that `Given` counts."""
    return list(dict(_given(calls)).values())


def _given(calls: Sequence[MicroCall]) -> Iterator[tuple[object, object]]:
    for number, call in enumerate(calls):
        for index, item in enumerate(call.flat):
            yield _identity(item, number, index), item


def _identity(item: object, number: int, index: int) -> object:
    """A tensor is itself wherever it is handed over; a Python number may differ in the next step."""
    return id(item) if isinstance(item, torch.Tensor) else (number, index)


def build_window(
    calls: Sequence[MicroCall],
    parameters: Mapping[int, str],
    names: Mapping[int, str],
    group_name: str | None = None,
    *,
    commits: bool = False,
) -> fx.GraphModule:
    """The window's graph before any pass.

    `parameters` has the names of those to train, `names` of all parameters and buffers, both by `id`. With
    the name of a process group the loss is the mean over its ranks' batches, of which weights are shares. With
    `commits` every micro-batch sends gradients, and the ranks agree at the end whether to keep what it kept back.
    """
    writer = _WindowWriter(calls, parameters, names, group_name)
    return writer.build(writer.commit if commits else lambda: None)


class _WindowWriter:
    """Writes a window, micro-batch by micro-batch."""

    def __init__(
        self,
        calls: Sequence[MicroCall],
        parameters: Mapping[int, str],
        names: Mapping[int, str],
        group_name: str | None,
    ) -> None:
        self.calls, self.parameters, self.group_name = calls, parameters, group_name
        self.graph = fx.Graph()
        self.root = nn.Module()
        self.module_names: dict[nn.Module, str] = {}
        self.accumulators: dict[str, fx.Node] = {}
        self.gradients: dict[str, fx.Node] = {}
        self.given: dict[object, fx.Node] = {}
        #: What compression keeps, by key and parameter.
        self.kept: dict[str, dict[str, fx.Node]] = {}
        for number, (identity, item) in enumerate(dict(_given(calls)).items()):
            name = names.get(id(item), f"batch_{number}")
            self.given[identity] = add_input(self.graph, as_name(name), Given(number, name))

    def build(self, end: Callable[[], None]) -> fx.GraphModule:
        weights = [add_input(self.graph, f"weight_{i}", Weight(i)) for i in range(len(self.calls))]
        for call in self.calls:
            self.add_accumulators(call)
        loss: fx.Node | None = None
        for number, weight in enumerate(weights):
            loss = self.add_loss(loss, self.add_micro(number, self.calls[number], weight), weight)
        if self.group_name is not None:
            sent = self.graph.call_function(_c10d.all_reduce_.default, (loss, "sum", self.group_name))
            loss = self.graph.call_function(_c10d.wait_tensor.default, (sent,))
        end()
        for name, node in self.gradients.items():
            node.meta[ROLE] = WindowGradient(name)
        self.graph.output((loss, None, None, list(self.gradients.values())))
        self.graph.set_codegen(_BoxedCodeGen())
        self.graph.lint()
        return fx.GraphModule(self.root, self.graph, "TrainingStep")

    def commit(self) -> None:
        """What micro-batches kept back is kept where no gradient of any rank overflowed."""
        flag = find_input(self.graph, Overflow())
        if flag is None:
            return
        sent = self.graph.call_function(_c10d.all_reduce_.default, (flag, "max", self.group_name))
        self.graph.call_function(_c10d.wait_tensor.default, (sent,))
        if self.kept:
            both = [[self.kept[key][name] for name in self.kept["residual"]] for key in ("residual", "pending")]
            self.graph.call_function(_ops.commit_.default, (*both, flag))

    def add_accumulators(self, call: MicroCall) -> None:
        for index, value in call.micro.graph.accumulators.items():
            name = self.parameters[id(call.flat[index])]
            if name not in self.accumulators:
                node = add_input(self.graph, f"gradient_{as_name(name)}", SummedGradient(name), value)
                self.accumulators[name] = self.gradients[name] = node

    def add_micro(self, number: int, call: MicroCall, weight: fx.Node) -> fx.Node:
        if number == 0:
            self.clear_untouched(call)
        loss = call.micro.graph.loss
        tangent = self.graph.call_function(
            aten.scalar_tensor.default, (weight,), {"dtype": loss.dtype, "device": loss.device}
        )
        tangent.meta[ROLE] = Tangent(number)
        arguments: list[Any] = [self.argument(role, call, number, tangent) for role in call.micro.input_roles]
        made = self.graph.call_module(self.module_name(call.micro.module), (arguments,))
        for index, position in call.micro.graph.gradients.items():
            name = self.parameters[id(call.flat[index])]
            self.gradients[name] = self.item(made, position, f"gradient_{as_name(name)}")
        return self.item(made, 0, f"loss_{number}")

    def clear_untouched(self, first: MicroCall) -> None:
        """Accumulators that the first micro-batch does not write hold the last window's gradients."""
        written = {self.parameters[id(first.flat[index])] for index in first.micro.graph.accumulators}
        for name, node in self.accumulators.items():
            if name not in written:
                self.graph.call_function(aten.zero_.default, (node,))

    def argument(self, role: object, call: MicroCall, number: int, tangent: fx.Node) -> object:
        if isinstance(role, PlainAOTInput):
            return self.given[_identity(call.flat[role.idx], number, role.idx)]
        if isinstance(role, (TangentAOTInput, KnownTangent)):
            return tangent
        if isinstance(role, Accumulator):
            return self.accumulators[self.parameters[id(call.flat[role.index])]]
        if isinstance(role, MicroState):
            name = self.parameters[id(call.flat[role.index])]
            return add_input(self.graph, f"{role.key}_{as_name(name)}", OptimizerState(name, role.key))
        if isinstance(role, MicroFirst):
            name = self.parameters[id(call.flat[role.index])]
            return add_input(self.graph, f"first_{as_name(name)}", First(name))
        if isinstance(role, MicroOption):
            return add_input(self.graph, f"{role.key}_of_group_{role.group}", OptimizerOption(role.group, role.key))
        if isinstance(role, Beta):
            return float(number > 0)
        return self.exchanged(role, call)

    def exchanged(self, role: object, call: MicroCall) -> fx.Node:
        """What the last micro-batch needs to compress gradients."""
        if isinstance(role, MicroKept):
            return self.kept_of(role, call)
        if isinstance(role, MicroScale):
            scale = find_input(self.graph, SCALE) or add_input(self.graph, "scale", SCALE)
            return inverse_of(self.graph, scale) if role.inverse else scale
        if isinstance(role, Overflow):
            if (flag := find_input(self.graph, role)) is None:
                flag = add_input(self.graph, "overflow", role)
                self.graph.call_function(aten.zero_.default, (flag,))
            return flag
        assert isinstance(role, Draw)
        return find_input(self.graph, role) or add_input(self.graph, "draw", role)

    def kept_of(self, role: MicroKept, call: MicroCall) -> fx.Node:
        """What is kept of a parameter. What a later micro-batch is the first to send begins as it was before."""
        name = self.parameters[id(call.flat[role.index])]
        held = self.kept.setdefault(role.key, {})
        if name not in held:
            held[name] = add_input(self.graph, f"{role.key}_{as_name(name)}", Kept(name, role.key))
            if role.key == "pending" and call is not self.calls[0]:
                self.graph.call_function(aten.copy_.default, (held[name], self.kept["residual"][name]))
        return held[name]

    def module_name(self, module: nn.Module) -> str:
        if module not in self.module_names:
            name = f"micro_batch_{len(self.module_names)}"
            self.root.add_module(name, module)
            self.module_names[module] = name
        return self.module_names[module]

    def item(self, made: fx.Node, position: int, name: str) -> fx.Node:
        return self.graph.create_node("call_function", operator.getitem, (made, position), name=name)

    def add_loss(self, mean: fx.Node | None, loss: fx.Node, weight: fx.Node) -> fx.Node:
        """Add a micro-batch's loss to the mean at once: its storage may be as large as its input (`mse_loss`)."""
        if len(self.calls) == 1 and self.group_name is None:
            return self.graph.call_function(aten.clone.default, (loss,))
        share = self.graph.call_function(aten.mul.Tensor, (loss, weight))
        return share if mean is None else self.graph.call_function(aten.add.Tensor, (mean, share))

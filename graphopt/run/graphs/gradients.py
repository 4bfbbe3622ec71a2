"""Gradients that are there already: what a backward adds to in place, and when it must not.

Autograd adds what a backward returns to `.grad` when all of it is there. A graph of our own may add each gradient as
soon as it exists, if nobody is to see it before: no hook, nobody who asked for it (`autograd.grad`), and no second
contribution, from outside of the graph, with which autograd would sum it up first.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import fx, nn

from graphopt.device.storages import unique_storage_bytes
from graphopt.graph.joint import JointGraph
from graphopt.graph.roles import DESCRIPTOR, Accumulator
from graphopt.graph.step_graph import tensors_of
from graphopt.plan.resident import with_gradients

#: Runs a boxed graph on a list of arguments.
Run = Callable[[list[Any]], Any]


def gradients_there(model: nn.Module) -> list[torch.Tensor]:
    """The gradients that the model's parameters hold now."""
    return gradients_of(with_gradients(model))


def gradients_of(holders: Iterable[nn.Parameter]) -> list[torch.Tensor]:
    """The gradients of parameters that hold one."""
    return [parameter.grad for parameter in holders if parameter.grad is not None]


def all_add(holders: Sequence[nn.Parameter], sums: Iterable[GradientSums]) -> bool:
    """Whether the graphs of a call may add to the gradients that it finds, which these hold, where they are made."""
    graphs = list(sums)
    return bool(holders and graphs) and all(each.may_add for each in graphs) and not any(map(_is_hooked, holders))


def gradient_bytes(gradients: Iterable[torch.Tensor], device: torch.device) -> int:
    """What gradients take on a device, each storage once."""
    return unique_storage_bytes((gradient for gradient in gradients if gradient.layout == torch.strided), device)


@dataclass(frozen=True)
class ParameterSlot:
    """A parameter of a graph: its position among the primals, and among those of them that are tensors."""

    position: int
    edge: int


def parameter_slots(joint: JointGraph, static_inputs: Iterable[int]) -> tuple[ParameterSlot, ...]:
    """The primals that are parameters and get a gradient."""
    static, gradients = set(static_inputs), joint.gradients
    tensors = [i for i, node in enumerate(joint.primals) if tensors_of(node)]
    return tuple(ParameterSlot(i, edge) for edge, i in enumerate(tensors) if i in static and i in gradients)


@dataclass(frozen=True)
class Wanted:
    """What a backward is to be given, to add a gradient to; plain numbers, as fake tensors take long to ask."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @staticmethod
    def like(example: torch.Tensor) -> Wanted:
        """One like a fake tensor."""
        stride = tuple(map(int, example.stride()))
        return Wanted(torch.Size(map(int, example.shape)), stride, example.dtype, example.device)

    def zeros(self) -> torch.Tensor:
        """A new one of -0.0: adding to it gives what is added, a -0.0 too."""
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device).fill_(-0.0)


@dataclass(eq=False)
class GradientSums:
    """How the backward of one graph hands its gradients over; `shared` are edges that get others from outside too.

    `is_like_others`: nobody has looked at its first backward, but none of the model's other graphs gets any.
    """

    shared: set[int] = field(default_factory=set)
    is_watched: bool = False
    is_like_others: bool = False
    #: What each backward is given to add to.
    _wanted: WeakKeyDictionary[fx.GraphModule, list[Wanted]] = field(default_factory=WeakKeyDictionary)

    @property
    def may_add(self) -> bool:
        """Whether it was seen that no gradient gets others from outside."""
        return (self.is_watched or self.is_like_others) and not self.shared

    def takes_over(self, others: Sequence[GradientSums]) -> None:
        """A graph of a model that has these is new: may it add, its first step needs no second set of gradients."""
        self.is_like_others = bool(others) and all(each.may_add for each in others)

    def look_again(self) -> None:
        """Other gradients may come from now on than those that were looked at."""
        self.is_watched = self.is_like_others = False

    def watching(self, slots: Sequence[ParameterSlot], run: Run, args: list[Any]) -> Any:
        """Run a backward that returns its gradients, the first time looking whether others come to them from outside.

        What is returned is held until autograd hands the sum on: it then sums into another tensor.
        """
        gradients = run(args)
        node = _current_node()
        if self.is_watched or node is None:
            return gradients
        self.is_watched = True
        edges = node.next_functions
        for slot in slots:
            edge = _edge(edges, slot)
            if edge is not None and isinstance(gradients[slot.position], torch.Tensor):
                self._watch(edge, slot, gradients[slot.position])
        return gradients

    def adding(
        self, slots: Sequence[ParameterSlot], backward: fx.GraphModule, alone: bool, run: Run, args: list[Any]
    ) -> Any:
        """Run a backward that adds its gradients to tensors that it is given: those that are there, or zeros to return.

        Zeros are given for what must be returned; all of it where another forward of the model waits for its backward
        (not `alone`), as autograd then sums up both first.
        """
        node, unheld = _current_node(), _references_unheld()
        edges = node.next_functions if node is not None else ()
        may_add = alone and self.may_add and node is not None
        targets, returned = [], {}
        for slot, wanted in zip(slots, self._wanted_by(backward), strict=True):
            there = _gradient_to_add_to(_edge(edges, slot), wanted, unheld) if may_add else None
            if there is None:
                there = returned[slot.position] = wanted.zeros()
            targets.append(there)
        given = [*args, *targets]
        args.clear()  # what is in there is to be freed while the backward runs
        gradients = list(run(given))
        for position, gradient in returned.items():
            gradients[position] = gradient
        if node is not None:
            self.is_watched = True
            added = [(slot, there) for slot, there in zip(slots, targets, strict=True) if slot.position not in returned]
            self._look_behind(added)
        return gradients

    def _wanted_by(self, backward: fx.GraphModule) -> list[Wanted]:
        if backward not in self._wanted:
            given = (node for node in backward.graph.find_nodes(op="placeholder") if _is_accumulator(node))
            self._wanted[backward] = [Wanted.like(node.meta["val"]) for node in given]
        return self._wanted[backward]

    def _look_behind(self, added: Sequence[tuple[ParameterSlot, torch.Tensor]]) -> None:
        """Look, when the backward has ended, whether autograd added anything to what was added to here: in place."""
        left = [(slot, there, there._version) for slot, there in added]

        def ended() -> None:
            found = {slot.edge for slot, there, version in left if there._version != version}
            left.clear()
            if found and not self.shared:
                _say_that_sums_were_apart()
            self.shared |= found

        if left:
            torch.autograd.Variable._execution_engine.queue_callback(ended)

    def _watch(self, edge: Any, slot: ParameterSlot, gradient: torch.Tensor) -> None:
        """Look whether others come to a gradient from outside."""
        held = [gradient]

        def arrives(summed: tuple[torch.Tensor | None, ...]) -> None:
            handle.remove()
            if summed[0] is not None and summed[0].data_ptr() != held.pop().data_ptr():
                self.shared.add(slot.edge)

        handle = edge.register_prehook(arrives)


def _say_that_sums_were_apart() -> None:
    warnings.warn(
        "graphopt: a backward added its gradients to those that were there, as those before it. Here a parameter gets "
        "a gradient from outside of the model too, and eager adds up both first: gradients of this step are eager's to "
        "rounding. From the next step on they are added up as in eager.",
        stacklevel=2,
    )


def _is_accumulator(node: fx.Node) -> bool:
    return isinstance(node.meta.get(DESCRIPTOR), Accumulator)


def _current_node() -> Any:
    """The autograd node that is being run now: its edges lead to where its gradients go."""
    return torch._C._current_autograd_node()


def _edge(edges: Sequence[tuple[Any, int]], slot: ParameterSlot) -> Any:
    """The parameter's own node, that gradients are summed up in; None where the input was no leaf."""
    found = edges[slot.edge][0] if slot.edge < len(edges) else None
    return found if found is not None and hasattr(found, "variable") else None


def _references(edge: Any) -> int:
    """References to a leaf's node: whoever hooks it holds it, as its hooks would go with it."""
    return sys.getrefcount(edge)


def _references_unheld() -> int:
    """The same for one that nobody but autograd holds: how many that are is the interpreter's affair."""
    with torch.enable_grad():
        node = torch.zeros(1, requires_grad=True).expand(1).grad_fn
    assert node is not None
    edges = node.next_functions  # held here, as where the others are looked at
    return _references_in(_edge(edges, ParameterSlot(0, 0)))


def _references_in(edge: Any) -> int:
    """Asked as `_gradient_to_add_to` asks, whose own argument is one more."""
    return _references(edge)


def _gradient_to_add_to(edge: Any, wanted: Wanted, unheld: int) -> torch.Tensor | None:
    """The gradient of a leaf, where autograd would add to it in place and nobody looks on; else None.

    `unheld` are the references to a leaf's node that nobody holds.
    """
    if edge is None or _references(edge) > unheld:
        return None
    leaf = edge.variable
    there = leaf.grad
    if there is None or _is_hooked(leaf) or there.requires_grad:
        return None
    alike = there.shape == wanted.shape and there.dtype == wanted.dtype and there.device == wanted.device
    if not alike or there.layout != torch.strided or type(there) is not torch.Tensor:
        return None
    try:
        return there if torch._C._will_engine_execute_node(edge) else None
    except RuntimeError:  # autograd.grad() asks for it: it is to be returned, and not to be added to anything
        return None


def _is_hooked(leaf: torch.Tensor) -> bool:
    return bool(leaf._backward_hooks or leaf._post_accumulate_grad_hooks)

"""What inputs and nodes of a training step's graphs stand for, beside AOTAutograd's own descriptors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx

DESCRIPTOR = "desc"
"""Key of `node.meta` under which AOTAutograd says what an input or output is; ours stand there too."""


@dataclass(frozen=True)
class Accumulator:
    """Of a micro-batch: where the gradients of flat input `index` are summed up over micro-batches."""

    index: int


@dataclass(frozen=True)
class Beta:
    """Of a micro-batch: what the accumulators' old content counts, 0.0 in the first of a window, then 1.0."""


@dataclass(frozen=True)
class MicroState:
    """Of a micro-batch that updates in the backward: state `key` of the parameter that is flat input `index`."""

    index: int
    key: str


@dataclass(frozen=True)
class MicroOption:
    """Of a micro-batch that updates in the backward: a number of the optimizer's group."""

    group: int
    key: str


@dataclass(frozen=True)
class KnownTangent:
    """Of a micro-batch: its tangent once more, for the forward, which may read it as soon as it begins."""


@dataclass(frozen=True)
class MicroFirst:
    """Of a micro-batch that updates in the backward: whether flat input `index` has no momentum yet."""

    index: int


@dataclass(frozen=True)
class MicroKept:
    """Of a micro-batch that compresses: what is kept under `key` for the gradient of flat input `index`."""

    index: int
    key: str


@dataclass(frozen=True)
class MicroScale:
    """Of a micro-batch that compresses: the loss scale, or 1 over it (`inverse`)."""

    inverse: bool


@dataclass(frozen=True)
class Overflow:
    """1.0 where a gradient of any rank was not finite before it was compressed, else 0.0."""


@dataclass(frozen=True)
class Draw:
    """A number that counts steps, from which random numbers are drawn."""


@dataclass(frozen=True)
class Kept:
    """What a method of compression keeps under `key` for a parameter."""

    parameter: str
    key: str


@dataclass(frozen=True)
class First:
    """Whether a parameter has no momentum yet."""

    parameter: str


@dataclass(frozen=True)
class Given:
    """The `number`-th distinct tensor that Dynamo hands to a window; `name` is its path in the model."""

    number: int
    name: str


@dataclass(frozen=True)
class Weight:
    """The share of a window's mean that its `number`-th micro-batch has, a float."""

    number: int


@dataclass(frozen=True)
class SummedGradient:
    """The accumulator of a parameter, by the parameter's name."""

    parameter: str


@dataclass(frozen=True)
class Master:
    """The float32 master of a half parameter."""

    parameter: str


@dataclass(frozen=True)
class OptimizerState:
    """`optimizer.state[parameter][key]`."""

    parameter: str
    key: str


@dataclass(frozen=True)
class OptimizerOption:
    """`optimizer.param_groups[group][key]`, a number."""

    group: int
    key: str


@dataclass(frozen=True)
class Scaling:
    """A tensor of the loss scale's state: "scale", "growth_tracker" or "hysteresis_tracker"."""

    key: str


@dataclass(frozen=True)
class Tangent:
    """A node: the gradient that the backward of micro-batch `number` starts from."""

    number: int


@dataclass(frozen=True)
class WindowGradient:
    """A node (or accumulator input): the gradient of a parameter over the whole window."""

    parameter: str


@dataclass(frozen=True)
class Update:
    """A node: what writes the parameters of group `group`, or finishes their gradients for the optimizer's `step()`."""

    group: int


@dataclass(frozen=True)
class Norm:
    """A node: the norm of a group's gradients before clipping, of all groups where `group` is None."""

    group: int | None


OUTPUTS = ("loss", "norm", "found_inf", "gradients")
"""What a window returns: norm and found_inf are None, and gradients empty, where nobody asks for them."""

RUN_ONCE = "graphopt_run_once"
"""Key of `node.meta` of a joint graph's nodes that must never run again, whatever their operators allow."""

SUM = "graphopt sum"
"""Key of `node.meta`: it adds into memory that the backward has made, and that nobody reads but through its result."""

EFFECT = "graphopt_effect"
"""Key of `node.meta` of ops that do more than their schemas say: they print, check, or change what no tensor holds."""

PRICE = "graphopt_price"
"""Key of `node.meta` of ops that cannot be run alone: (seconds, workspace bytes), as whoever made them knows."""

UNDEFINED = "graphopt_undefined"
"""Key of `node.meta` of a tangent for which no gradient is expected: nothing arrives there, and it takes no bytes."""

ROLE = "graphopt_role"
"""Key of `node.meta` under which a window's nodes say what they are."""


def as_name(path: str) -> str:
    """A dotted path as a variable's name."""
    return re.sub(r"\W", "_", path)


def with_role(graph: fx.Graph, kind: type) -> Iterator[fx.Node]:
    """The nodes of a role, in order."""
    return (node for node in list(graph.nodes) if isinstance(node.meta.get(ROLE), kind))


def add_input(graph: fx.Graph, name: str, descriptor: object, value: object = None) -> fx.Node:
    """A new placeholder behind the last one."""
    inputs = graph.find_nodes(op="placeholder")
    anchor = inputs[-1].next if inputs else next(iter(graph.nodes), None)
    with graph.inserting_before(anchor):
        node = graph.placeholder(name)
    # generated code takes an input by its target, which must then be as unique as the name
    node.target = node.name
    node.meta = {DESCRIPTOR: descriptor, "val": value}
    return node


def find_input(graph: fx.Graph, descriptor: object) -> fx.Node | None:
    """The placeholder with that descriptor."""
    found = (node for node in graph.find_nodes(op="placeholder") if node.meta.get(DESCRIPTOR) == descriptor)
    return next(found, None)


def set_outputs(graph: fx.Graph, **changed: Any) -> None:
    """Change some of what a window returns: loss, norm, found_inf, gradients."""
    now: Any = graph.output_node().args[0]
    graph.output_node().args = (tuple({**dict(zip(OUTPUTS, now, strict=True)), **changed}.values()),)


def returned_gradients(graph: fx.Graph) -> list[str]:
    """The parameters whose gradients a window returns, in order."""
    gradients: Any = graph.output_node().args[0][3]  # type: ignore[index]
    return [node.meta[ROLE].parameter for node in gradients]

"""One graph for other sizes of its inputs: numbers that follow a size are computed from it.

A graph is made for given sizes, and all that follows from these is a number in it. It is made again with each size
changed: a number that changes too is `first + step x size`, and becomes that. What else changes, a mask for example,
ties the graph to the size.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from graphopt.base.errors import OnnxError
from graphopt.formats.onnx.inputs import OnnxInput, batch_places

#: Makes the graph anew, with these sizes of its inputs.
Build = Callable[[Sequence[Sequence[int]]], fx.GraphModule]
#: Where a number stands: node, and the way through its arguments.
Place = tuple[int, ...]


@dataclass(frozen=True)
class Size:
    """A size that may change: where it stands among the inputs, each as its number and dimension."""

    value: int
    places: tuple[tuple[int, int], ...]


@dataclass
class _Form:
    """A number of the graph: `first` and for each size its step."""

    value: int
    steps: dict[int, int] = field(default_factory=dict)

    def at(self, sizes: Sequence[int], base: Sequence[int]) -> int:
        return self.value + sum(step * (sizes[k] - base[k]) for k, step in self.steps.items())


def sizes_of(inputs: Sequence[OnnxInput], dims: Mapping[str, int]) -> list[Size]:
    """The batch, dimension 0 of the inputs that have the first one's, and all other sizes that have names."""
    shapes = [each.shape(dims) for each in inputs]
    if not shapes or not shapes[0]:
        return []
    batch = tuple((n, 0) for n in batch_places(inputs))
    found = [Size(shapes[0][0], batch)]
    names = dict.fromkeys(size for each in inputs for size in each.sizes if isinstance(size, str))
    for name in names:
        places = tuple((n, a) for n, each in enumerate(inputs) for a, size in enumerate(each.sizes) if size == name)
        if not set(places) & set(batch):
            found.append(Size(dims[name], places))
    return found


def follow_sizes(module: fx.GraphModule, shapes: Sequence[Sequence[int]], sizes: Sequence[Size], build: Build) -> int:
    """Let the graph's numbers follow as many of the sizes as can be; how many, from the first on."""
    for count in range(len(sizes), 0, -1):
        forms = _forms(module, shapes, sizes[:count], build)
        if forms is not None:
            _write(module, sizes[:count], forms)
            return count
    return 0


def _forms(
    module: fx.GraphModule, shapes: Sequence[Sequence[int]], sizes: Sequence[Size], build: Build
) -> dict[Place, _Form] | None:
    """Every number that changes with a size; None where something else does."""
    base = [size.value for size in sizes]
    found: dict[Place, _Form] = {}
    numbers = _numbers(module)
    for place in range(len(sizes)):
        other = _again(module, shapes, sizes, [v + (k == place) for k, v in enumerate(base)], build)
        if other is None:
            return None
        for where, value in numbers.items():
            if other[where] != value:
                found.setdefault(where, _Form(value)).steps[place] = other[where] - value
    changed = [3 * value + 2 for value in base]
    last = _again(module, shapes, sizes, changed, build)
    if last is None or any(value != last[where] for where, value in numbers.items() if where not in found):
        return None
    wrong = [where for where, form in found.items() if form.at(changed, base) != last[where]]
    nodes = list(module.graph.nodes)
    for where in wrong:
        # a product of two sizes, which a reshape can find by itself
        alone = sum(other[0] == where[0] for other in found) == 1
        if nodes[where[0]].target != "reshape" or not alone:
            return None
        found[where].steps = {-1: 0}
    return found


def _again(
    module: fx.GraphModule, shapes: Sequence[Sequence[int]], sizes: Sequence[Size], values: Sequence[int], build: Build
) -> dict[Place, int] | None:
    """The numbers of the graph at other sizes; None where it is another graph."""
    new = [list(shape) for shape in shapes]
    for size, value in zip(sizes, values, strict=True):
        for number, axis in size.places:
            new[number][axis] = value
    try:
        other = build(new)
    except OnnxError:
        return None
    return _numbers(other) if _alike(module, other) else None


def _alike(one: fx.GraphModule, other: fx.GraphModule) -> bool:
    nodes, others = list(one.graph.nodes), list(other.graph.nodes)
    if [(node.op, node.target) for node in nodes] != [(node.op, node.target) for node in others]:
        return False
    if any(_shape(node.args) != _shape(twin.args) for node, twin in zip(nodes, others, strict=True)):
        return False
    constants = dict(one.named_buffers()), dict(other.named_buffers())
    parameters = [{name: tuple(p.shape) for name, p in each.named_parameters()} for each in (one, other)]
    return parameters[0] == parameters[1] and all(
        buffer.shape == constants[1][name].shape and bool((buffer == constants[1][name]).all())
        for name, buffer in constants[0].items()
        if name.startswith("constant_")
    )


def _shape(argument: Any) -> Any:
    """Arguments without their numbers."""
    if isinstance(argument, (tuple, list)):
        return [_shape(each) for each in argument]
    if isinstance(argument, slice):
        return [_shape(each) for each in (argument.start, argument.stop, argument.step)]
    if isinstance(argument, int) and not isinstance(argument, bool):
        return int
    return argument.name if isinstance(argument, fx.Node) else repr(argument)


def _numbers(module: fx.GraphModule) -> dict[Place, int]:
    found: dict[Place, int] = {}

    def look(argument: Any, where: Place) -> None:
        if isinstance(argument, (tuple, list)):
            for number, each in enumerate(argument):
                look(each, (*where, number))
        elif isinstance(argument, slice):
            look((argument.start, argument.stop, argument.step), where)
        elif isinstance(argument, int) and not isinstance(argument, bool):
            found[where] = argument

    for number, node in enumerate(module.graph.nodes):
        look(tuple(node.args), (number,))
        look(tuple(node.kwargs.values()), (number, -1))
    return found


def _write(module: fx.GraphModule, sizes: Sequence[Size], forms: Mapping[Place, _Form]) -> None:
    graph = module.graph
    nodes = list(graph.nodes)
    holes = [node for node in nodes if node.op == "placeholder"]
    first = next(node for node in nodes if node.op not in ("placeholder", "get_attr"))
    asked: dict[Any, fx.Node] = {}

    def once(key: Any, function: Any, *arguments: Any) -> fx.Node:
        if key not in asked:
            with graph.inserting_before(first):
                make = graph.call_method if isinstance(function, str) else graph.call_function
                asked[key] = make(function, arguments)
        return asked[key]

    def value(form: _Form) -> Any:
        if -1 in form.steps:
            return -1
        total: Any = form.value - sum(step * sizes[k].value for k, step in form.steps.items())
        for k, step in form.steps.items():
            number, axis = sizes[k].places[0]
            part = once((k,), "size", holes[number], axis)
            part = part if step == 1 else once((k, step), operator.mul, part, step)
            total = (
                part
                if not isinstance(total, fx.Node) and total == 0
                else once((part, total), operator.add, part, total)
            )
        return total

    def new(argument: Any, where: Place) -> Any:
        if isinstance(argument, slice):
            return slice(*new((argument.start, argument.stop, argument.step), where))
        if isinstance(argument, (tuple, list)):
            return type(argument)(new(each, (*where, number)) for number, each in enumerate(argument))
        return value(forms[where]) if where in forms else argument

    for number in sorted({where[0] for where in forms}):
        node = nodes[number]
        node.args = new(tuple(node.args), (number,))
        values = new(tuple(node.kwargs.values()), (number, -1))
        node.kwargs = dict(zip(node.kwargs, values, strict=True))
    graph.lint()
    module.recompile()

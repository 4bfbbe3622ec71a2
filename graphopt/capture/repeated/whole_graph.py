"""The captured graph of a model, made of that of a stand-in which has fewer layers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import sympy
import torch
from torch import fx

from graphopt.capture.repeated.extend import Extended, extend
from graphopt.capture.repeated.sequence import Item, Place
from graphopt.capture.repeated.sequence import Sequence as Steps
from graphopt.capture.repeated.stand_in import Left, place_of
from graphopt.cost_models.at_sizes import spelled_op
from graphopt.graph.captured_graph import CapturedGraph
from graphopt.graph.nodes import own_name
from graphopt.graph.step_graph import ValueInfo
from graphopt.problem.problem import Problem


def names_of_inputs(module: fx.GraphModule) -> list[str]:
    """Inside of a backend: what each input of one of Dynamo's graphs is called in the model, as far as it is of it."""
    given = [node.meta.get("grapharg") for node in module.graph.find_nodes(op="placeholder")]
    names = [each.source.name if each is not None and each.source is not None else "" for each in given]
    paths = [re.sub(r"\._(?:modules|parameters|buffers)\['([^']+)'\]", r".\1", name) for name in names]
    return [own_name(re.sub(r"^L\['\w+'\]\.(__self__\.)?", "", path)) for path in paths]


def whole_graph(graph: CapturedGraph, names: Sequence[str], left: Mapping[str, Left]) -> CapturedGraph:
    """The graph as it were with the layers that were `left` out; `names` are those of its flat inputs.

    Raises NotAlike where that cannot be told.
    """
    nodes = dict(zip(graph.step.joint.primals, names, strict=True))
    for name, each in left.items():
        places = {
            home: place
            for node, home in graph.step.home.items()
            if (place := place_of(nodes.get(node, ""), [name])) is not None
        }
        graph = _with_layers(graph, extend(_steps_of(graph, places), name, each), name)
    return graph


def _steps_of(graph: CapturedGraph, places: Mapping[int, Place]) -> Steps:
    step, problem = graph.step, graph.problem
    outputs, described = frozenset(problem.outputs), cache(_described)
    kinds = [(described(*_sizes(value)), problem.values[i].bytes, i in outputs) for i, value in enumerate(step.values)]
    items = []
    for info, op in zip(step.ops, problem.ops, strict=True):
        prices = op.seconds, op.workspace_bytes, op.recomputable, op.pinned, info.random, len(info.writes)
        does = spelled_op(info.node) if info.node is not None else info.name
        what = does, prices, tuple(kinds[value] for value in op.outputs)
        items.append(Item(what, op.inputs, op.outputs, op.backward))
    residents = tuple(number for number, maker in enumerate(problem.producer) if maker < 0)
    return Steps(tuple(items), residents, places)


def _sizes(value: ValueInfo) -> tuple[object, ...]:
    traced = () if value.traced is None else (*value.traced.shape, value.traced.untyped_storage().nbytes())
    symbolic = [size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(size) for size in traced]
    return value.kind, value.bytes, value.dtype, value.shape, *symbolic


def _described(*sizes: object) -> tuple[object, ...]:
    # one size may come in several forms, as what it was computed from
    return tuple(sympy.expand(size) if isinstance(size, sympy.Expr) else size for size in sizes)


def _with_layers(graph: CapturedGraph, longer: Extended, name: str) -> CapturedGraph:
    step, problem = graph.step, graph.problem
    infos, ops = [], []
    called = _unique(step.ops[origin].name for origin in longer.items)
    for item, origin, layer, own in zip(longer.sequence.items, longer.items, longer.layers, called, strict=True):
        info = step.ops[origin]
        writes = tuple(item.inputs[info.inputs.index(value)] for value in info.writes)
        moved: dict[str, Any] = {"name": own, "inputs": item.inputs, "outputs": item.outputs}
        infos.append(replace(info, **moved, writes=writes, module_path=_path(info.module_path, name, layer)))
        ops.append(replace(problem.ops[origin], **moved))
    names = _unique(step.values[origin].name for origin in longer.values)
    values = tuple(replace(step.values[o], name=own) for o, own in zip(longer.values, names, strict=True))
    outputs = tuple(number for number, origin in enumerate(longer.values) if origin in set(step.outputs))
    places = {origin: number for number, origin in enumerate(longer.values)}
    further = replace(
        step,
        ops=tuple(infos),
        values=values,
        outputs=outputs,
        home={node: places[value] for node, value in step.home.items()},
        boundary=longer.items.index(step.boundary),
        graph_hash=f"{step.graph_hash}+{max(longer.layers)}",
    )
    prices = tuple(problem.values[origin] for origin in longer.values)
    return replace(graph, step=further, problem=Problem(prices, tuple(ops), outputs), whole=None)


def _unique(names: Iterable[str]) -> list[str]:
    """The names, those that come again with a number behind them."""
    times: Counter[str] = Counter()
    found = []
    for name in names:
        found.append(f"{name}.{times[name]}" if times[name] else name)
        times[name] += 1
    return found


def _path(path: str, name: str, further: int) -> str:
    """The path of a module so many layers further in the list `name`."""
    place = place_of(path, [name])
    return f"{name}.{place[1] + further}{f'.{place[2]}' if place[2] else ''}" if place is not None else path

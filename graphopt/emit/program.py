"""A boxed graph as a list of operator calls on numbered registers, for the runner that has no Python in it.

Values are given up where fx's generated code drops its variables: behind the last node that reads them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload
from torch._prims.rng_prims import run_and_save_rng_state, run_with_rng_state

from graphopt.emit.emit import unwatched
from graphopt.emit.native import native_runner
from graphopt.emit.program_sizes import ComputedSizes, is_list_of_sizes, is_taken_for_tensor, numbers_are_computed
from graphopt.graph.nodes import source_line
from graphopt.graph.numbers import is_number
from graphopt.graph.step_graph import tensors_of

#: Functions that are called as Python, between the operators.
_FUNCTIONS = (run_and_save_rng_state, run_with_rng_state, unwatched)
_LITERALS = (type(None), bool, int, float, complex, str, torch.dtype, torch.device, torch.layout, torch.memory_format)


def native(module: fx.GraphModule) -> Callable[[list[Any]], Any] | None:
    """What runs `module`'s operators in C++; None where it holds something else, or there is no compiler.

    It takes the inputs in a list, which it empties; NotImplemented, with the list as it was, for tensors that are
    of classes of their own.
    """
    nodes = list(module.graph.nodes)
    if not all(map(_is_known, nodes)) or not numbers_are_computed(nodes):
        return None
    library = native_runner()
    if library is None:
        return None
    return _Program(library, _ProgramWriter(module)).run


class _Program:
    """A program that C++ has read, dropped together with this."""

    def __init__(self, library: Any, writer: _ProgramWriter) -> None:
        self._library, self._writer = library, writer
        self._program = library.graphopt_read_program(writer.program())
        self._sizes = writer.sizes if writer.sizes.places else None

    def run(self, args: list[Any]) -> Any:
        """Run it on its inputs, which are emptied; an error has a note that says where it was raised."""
        try:
            if self._sizes is None:
                return self._library.graphopt_run_program(self._program, args)
            count = len(args)
            args += self._sizes.of(args)
            results = self._library.graphopt_run_program(self._program, args)
            del args[count:]  # where it was not run
            return results
        except Exception as error:
            if hasattr(error, "add_note"):  # Python 3.11
                error.add_note(f"in {self._writer.says(self._library.graphopt_failed_step())}")
            raise

    def __del__(self) -> None:
        self._library.graphopt_drop_program(self._program)


def _is_known(node: fx.Node) -> bool:
    if is_number(node):
        return True  # see `numbers_are_computed`
    if node.op == "call_function":
        is_operator = type(node.target) is OpOverload and all(map(_is_simple, _arguments(node)))
        return is_operator or _is_part(node) or _is_function(node)
    if node.op == "output":
        return isinstance(node.args[0], tuple) and all(isinstance(i, fx.Node) or i is None for i in node.args[0])
    return node.op in ("placeholder", "get_attr")


def _is_part(node: fx.Node) -> bool:
    """Whether it takes one of several results of an operator or a function."""
    source, *position = node.args or (None,)
    if node.target is not operator.getitem or not isinstance(source, fx.Node) or not isinstance(position[0], int):
        return False
    return type(source.target) is OpOverload or _is_function(source) or _is_part(source)


def _is_function(node: fx.Node) -> bool:
    """Whether it calls a function that gives tensors, in tuples perhaps of which each is taken out."""
    constants = all(_is_constant(arg) for arg in node.kwargs.values())
    given = all(_is_constant(arg) or isinstance(arg, fx.Node) or is_list_of_sizes(arg) for arg in node.args)
    return node.target in _FUNCTIONS and constants and given and _is_taken(node)


def _is_taken(node: fx.Node) -> bool:
    if isinstance(node.meta.get("val"), torch.Tensor):
        return True
    return bool(tensors_of(node)) and all(_is_part_of(user, node) and _is_taken(user) for user in node.users)


def _is_part_of(user: fx.Node, node: fx.Node) -> bool:
    return user.target is operator.getitem and user.args[0] is node


def _is_simple(argument: Any) -> bool:
    if isinstance(argument, (list, tuple)):
        items = list(argument)
        nodes = [isinstance(item, fx.Node) for item in items]
        of_tensors = all(n or i is None for n, i in zip(nodes, items, strict=True))
        return of_tensors or all(map(_is_literal, items)) or is_list_of_sizes(argument)
    return isinstance(argument, fx.Node) or _is_literal(argument)


def _is_constant(argument: Any) -> bool:
    items = argument if isinstance(argument, (list, tuple)) else (argument,)
    return all(_is_literal(item) or isinstance(item, OpOverload) for item in items)


def _is_literal(argument: Any) -> bool:
    return isinstance(argument, _LITERALS)


def _arguments(node: fx.Node) -> list[Any]:
    return [*node.args, *node.kwargs.values()]


class _ProgramWriter:
    """Gives registers to nodes and writes the calls."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.nodes = list(module.graph.nodes)
        self.last_reads = _last_reads(self.nodes)
        self.places = {node: place for place, node in enumerate(n for n in self.nodes if n.op != "output")}
        self.sizes = ComputedSizes(self.nodes, self.places)

    def says(self, step: int) -> str:
        """A step in words: its node, and the model's own line that it is of."""
        written = [node for node in self._called if self.steps(node)]
        return f"{written[step].format_node()} {source_line(written[step])}".rstrip()

    def program(self) -> dict[str, Any]:
        """As `runner.cpp` reads it."""
        inputs = [node for node in self.nodes if node.op == "placeholder"]
        constants = [node for node in self.nodes if node.op == "get_attr"]
        (returned,) = self.module.graph.output_node().args
        assert isinstance(returned, tuple)
        return {
            "registers": len(self.places) + len(self.sizes.literals),
            "inputs": [self.places[node] if node.users else -1 for node in inputs] + self.sizes.places,
            "are_numbers": [is_number(node) for node in inputs] + [True] * len(self.sizes.places),
            "constants": [(self.places[node], self.constant(str(node.target))) for node in constants],
            "steps": [step for node in self._called for step in self.steps(node)],
            "outputs": [self.places[node] if isinstance(node, fx.Node) else -1 for node in returned],
        }

    def constant(self, name: str) -> Any:
        return operator.attrgetter(name)(self.module)

    @property
    def _called(self) -> list[fx.Node]:
        return [node for node in self.nodes if node.op == "call_function" and not is_number(node)]

    def steps(self, node: fx.Node) -> list[tuple[str, Any]]:
        if node.target is not operator.getitem:
            is_operator = type(node.target) is OpOverload
            return [("call", self.call(node)) if is_operator else ("python", self.python(node))]
        source = node.args[0]
        assert isinstance(source, fx.Node)
        if type(source.target) is OpOverload and _gives_list(source):
            return [("part", (self.places[source], node.args[1], self.places[node], self.done(node)))]
        return []

    def call(self, node: fx.Node) -> tuple[Any, ...]:
        target = node.target
        assert isinstance(target, OpOverload)
        given = dict(zip((a.name for a in target._schema.arguments), node.args, strict=False)) | node.kwargs
        once = _read_once(node)
        arguments = [
            self.argument(given[each.name], each.real_type, self.last_reads[node] & once)
            if each.name in given
            else ("default",)
            for each in target._schema.arguments
        ]
        moved = {item for item in given.values() if isinstance(item, fx.Node)} & once
        parts = [] if _gives_list(node) else [user for user in node.users if user.target is operator.getitem]
        results: list[list[int]] = [[] for _ in target._schema.returns]
        if len(results) == 1:
            results[0] = [self.places[node]] if node.users else []
        for part in parts:
            results[int(part.args[1])].append(self.places[part])  # type: ignore[arg-type]
        done = self.done(node) + [place for part in parts for place in self.done(part)]
        given_up = [place for place in done if place not in {self.places[each] for each in moved}]
        return (target._schema.name, target._schema.overload_name, arguments, results, given_up)

    def python(self, node: fx.Node) -> tuple[Any, ...]:
        arguments = list(map(self.python_argument, node.args))
        results: list[tuple[tuple[Any, ...], int]] = []
        done: list[int] = []
        waiting: list[tuple[tuple[Any, ...], fx.Node]] = [((), node)]
        while waiting:
            path, made = waiting.pop()
            done += self.done(made)
            if isinstance(made.meta["val"], torch.Tensor):
                results.append((path, self.places[made]))
            else:
                waiting += [((*path, user.args[1]), user) for user in made.users]
        kwargs = {key: _plain(value) for key, value in node.kwargs.items()}
        return (node.target, kwargs, arguments, results, done)

    def argument(self, item: Any, wanted: Any, moved: set[fx.Node]) -> tuple[Any, ...]:
        if is_taken_for_tensor(item, wanted):
            return ("number", self.places[item])
        if isinstance(item, fx.Node):
            return ("last" if item in moved else "register", self.places[item])
        if isinstance(item, (list, tuple)) and any(isinstance(each, fx.Node) for each in item):
            return ("registers", self.places_of(item))
        return ("constant", item)

    def python_argument(self, item: Any) -> tuple[int, Any, list[int]]:
        """A register, or a constant, or a list of registers."""
        if isinstance(item, fx.Node):
            return (self.places[item], None, [])
        if isinstance(item, (list, tuple)) and any(isinstance(each, fx.Node) for each in item):
            return (-1, None, self.places_of(item))
        return (-1, _plain(item), [])

    def places_of(self, items: Sequence[Any]) -> list[int]:
        """The registers of a list's items; -1 stands for None."""
        places: dict[Any, int] = {None: -1, **self.sizes.literals}
        return [self.places[each] if isinstance(each, fx.Node) else places[each] for each in items]

    def done(self, node: fx.Node) -> list[int]:
        """What is given up behind a node: what it read last, and what it gives where nobody reads that."""
        unread = [self.places[node]] if not node.users else []
        return [self.places[each] for each in self.last_reads[node]] + unread


def _plain(item: Any) -> Any:
    """Lists as code writes them, in place of fx's own."""
    return list(item) if isinstance(item, list) else item


def _gives_list(node: fx.Node) -> bool:
    assert isinstance(node.target, OpOverload)
    returns = node.target._schema.returns
    return len(returns) == 1 and isinstance(returns[0].type, torch.ListType)


def _read_once(node: fx.Node) -> set[fx.Node]:
    """The nodes that stand once among its arguments, and in no list."""
    found: list[fx.Node] = []
    fx.node.map_arg((node.args, node.kwargs), found.append)
    plain = {item for item in _arguments(node) if isinstance(item, fx.Node)}
    return {item for item in plain if found.count(item) == 1}


def _last_reads(nodes: list[fx.Node]) -> dict[fx.Node, set[fx.Node]]:
    """Node -> those that it is the last to read; what is returned is read by nobody last."""
    last: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        for source in node.all_input_nodes:
            last[source] = node
    found: dict[fx.Node, set[fx.Node]] = {node: set() for node in nodes}
    for source, node in last.items():
        if node.op != "output":
            found[node].add(source)
    return found

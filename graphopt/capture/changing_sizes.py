"""Sizes of inputs: constants of the first capture, symbols from the second on, so that one graph serves all shapes.

Dynamo has it so itself (`automatic_dynamic_shapes`), dimension by dimension as each is seen to change. Here a capture
that a size made necessary takes the first dimension of every input for one that changes too, and the sides of images:
batches end in a short one, and a graph for each dimension that changes first would be one capture more.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import sympy
import torch
from torch import fx
from torch._dynamo.source import TensorProperty, TensorPropertySource, is_from_local_source
from torch._dynamo.variables import builder
from torch._guards import Source
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatefulSymbolicContext

from graphopt.base.errors import CaptureError, UsageError
from graphopt.capture.captures import cause_of_capture, in_users_words
from graphopt.capture.numbers import reads_numbers
from graphopt.device.storages import tensors_in
from graphopt.graph.nodes import source_line
from graphopt.graph.numbers import is_symbol, layout_of, plain

logger = logging.getLogger("graphopt")


@dataclass(eq=False)
class Sizes:
    """Which sizes of inputs one model's captures take for symbols.

    `follow`: those that changed; otherwise none ever. `from_start`: all, at the first capture already. `names` are the
    dimensions that the user named, by position: those alone then; `exactly` are those of a kept plan, by `size_name`.
    `by_input` are those that the user named for single inputs, by `size_name`. `obstacle` says why all are constants in
    spite of it.
    """

    follow: bool = True
    from_start: bool = False
    names: dict[int, str] = field(default_factory=dict)
    exactly: frozenset[str] = frozenset()
    by_input: dict[str, str] = field(default_factory=dict)
    obstacle: str = ""
    #: Whether the capture that is being made has symbols for sizes.
    has_some: bool = False

    @property
    def are_constant(self) -> bool:
        """Whether every capture is for one set of shapes."""
        return not self.follow or bool(self.obstacle)

    def cannot_change(self, why: str) -> None:
        """From now on every capture is for one set of shapes; said once."""
        if not self.obstacle:
            self.obstacle = why.splitlines()[0]
            logger.info("each shape is captured by itself, as sizes cannot be symbols: %s", self.obstacle)


#: What a user says of sizes: None: those that change are symbols from then on; False: none ever is; True: all are, from
#: the first capture on; by name: these dimensions are, of every input or of those that are given by place or keyword.
Dynamic = bool | Mapping[str, int | Mapping[int | str, int]] | None


def sizes_of(dynamic: Dynamic) -> Sizes:
    """What `dynamic` asks for. Raises UsageError where it is none of its kinds."""
    if dynamic is None or isinstance(dynamic, bool):
        return Sizes(follow=dynamic is not False, from_start=dynamic is True)
    flat = list(_by_input(dynamic)) if isinstance(dynamic, Mapping) else []
    is_known = all(isinstance(name, str) and type(d) is int and d >= 0 for name, _, d in flat)
    if not flat or not is_known or len({(of, d) for _, of, d in flat}) != len(flat):
        raise UsageError(
            f"dynamic: expected None, True, False, or a name for each dimension of the inputs that changes, such as "
            f"{{'batch': 0, 'length': 1}} or {{'side': {{'images': 2}}}}, got {dynamic!r}"
        )
    names = {dimension: name for name, of, dimension in flat if of is None}
    by_input = {f"{input_name(of)}.size({dimension})": name for name, of, dimension in flat if of is not None}
    return Sizes(from_start=True, names=names, by_input=by_input)


def _by_input(dynamic: Mapping[Any, Any]) -> Iterator[tuple[Any, Any, Any]]:
    """Each name, of which input it names a dimension (None: of every one), and the dimension."""
    for name, dimension in dynamic.items():
        if isinstance(dimension, Mapping):
            yield from ((name, of, each) for of, each in dimension.items())
        else:
            yield name, None, dimension


def input_name(of: int | str) -> str:
    """An input as it is called in `size_name`, by its place or its keyword."""
    return f"args[{of}]" if isinstance(of, int) else f"kwargs['{of}']"


#: Every capture is for one set of shapes.
CONSTANT = Sizes(follow=False)


@contextmanager
def changing_sizes(sizes: Sizes) -> Iterator[None]:
    """Let Dynamo take those sizes for symbols that `sizes` says."""
    before = builder._automatic_dynamic
    sizes.has_some = False

    def follow(tensor: Any, tx: Any, source: Any, static_shapes: bool, *rest: Any, **named: Any) -> Any:
        static = static_shapes or sizes.are_constant
        context = before(tensor, tx, source, static, *rest, **named)
        if static or not is_from_local_source(source, only_allow_input=True):
            return context
        context = _with_changing(context, tensor, source, sizes) if _is_wanted(sizes) else context
        sizes.has_some |= any(size is DimDynamic.DYNAMIC for size in getattr(context, "dynamic_sizes", ()))
        return context

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(builder, "_automatic_dynamic", follow))
        # equal numbers need not stay equal: a batch of 16 with 16 tokens
        stack.enter_context(mock.patch.object(torch.fx.experimental._config, "use_duck_shape", False))
        yield


def _is_wanted(sizes: Sizes) -> bool:
    return sizes.from_start or bool(sizes.exactly) or "size mismatch" in cause_of_capture()


def _with_changing(context: Any, tensor: torch.Tensor, source: Source, sizes: Sizes) -> Any:
    if not isinstance(context, StatefulSymbolicContext):
        return context
    dynamic = list(context.dynamic_sizes)
    for dimension in _wanted(tensor, source, sizes):
        if dimension < len(dynamic) and tensor.shape[dimension] > 1:
            dynamic[dimension] = DimDynamic.DYNAMIC
    return replace(context, dynamic_sizes=dynamic)


def _wanted(tensor: torch.Tensor, source: Source, sizes: Sizes) -> Iterable[int]:
    if sizes.exactly:
        return [d for d in range(tensor.dim()) if size_name(source, d) in sizes.exactly]
    if sizes.names or sizes.by_input:
        return [d for d in range(tensor.dim()) if d in sizes.names or size_name(source, d) in sizes.by_input]
    if sizes.from_start:
        return range(tensor.dim())
    # height and width change at different times
    return (0, *range(2, tensor.dim())) if tensor.dim() > 3 else (0,)


def size_name(source: Source, dimension: int) -> str:
    """A size of an input as the user knows it: "args[0].size(1)"."""
    name = re.sub(r"^L\['(\w+)'\]", r"\1", source.name)
    return f"{in_users_words(name)}.size({dimension})"


def named_sizes(module: fx.GraphModule) -> dict[str, torch.SymInt]:
    """Inside of a backend: the sizes of one of Dynamo's inputs that are symbols, by `size_name`."""
    found: dict[str, torch.SymInt] = {}
    for node in module.graph.find_nodes(op="placeholder"):
        example, given = node.meta.get("example_value"), node.meta.get("grapharg")
        if isinstance(example, torch.Tensor) and given is not None:
            sizes = {d: size for d, size in enumerate(example.shape) if is_symbol(size)}
            found |= {size_name(given.source, d): size for d, size in sizes.items()}  # type: ignore[misc]
    return found


def fix_sizes(module: fx.GraphModule, sizes: Sizes = CONSTANT) -> None:
    """Make the sizes in one of Dynamo's graphs constants, guarded, but those that may be symbols.

    To be called while Dynamo compiles the graph, as guards that come later are not looked at.
    Raises CaptureError for a nested tensor, whose sizes are none.
    """
    for node in module.graph.nodes:
        for tensor in tensors_in(node.meta.get("example_value")):
            if tensor.is_nested:
                where = f" at {found}" if (found := source_line(node)) else ""
                raise CaptureError(
                    f"a nested tensor is made{where}, whose steps cannot be captured and planned: pad it, or make it "
                    "in a function that is not captured (@torch.compiler.disable)"
                )
            for size in layout_of(tensor):
                if sizes.are_constant or (is_symbol(size) and not _is_of_tensors(size)):
                    plain(size)


def with_plain_layout(example: Any) -> Any:
    """An input whose symbols were made constants, in the same memory, as it would be without; others as they are."""
    is_dense = isinstance(example, FakeTensor) and example.layout == torch.strided
    if not is_dense or not any(isinstance(size, torch.SymInt) for size in layout_of(example)):
        return example
    shape, stride = list(map(plain, example.shape)), list(map(plain, example.stride()))
    with example.fake_mode, torch.no_grad():
        made = example.as_strided(shape, stride, plain(example.storage_offset()))
    return made.requires_grad_(example.requires_grad)


def conditions_on_sizes(module: fx.GraphModule) -> tuple[str, ...]:
    """Inside of a backend: what must hold of sizes for one of Dynamo's graphs, with the line that asks for it."""
    env = next((s.node.shape_env for s in symbolic_sizes(module)), None)
    if env is None:
        return ()
    found = []
    for guard in env.guards:
        names = {symbol: _name_of(env, symbol) for symbol in guard.expr.free_symbols}
        if not all(names.values()):
            continue
        expression = str(guard.expr.subs({symbol: sympy.Symbol(name) for symbol, name in names.items()}))
        where = getattr(guard.sloc, "maybe_user_loc", None)
        found.append(f"{expression}, for {where}" if where else expression)
    return tuple(dict.fromkeys(found))


def has_symbols(module: fx.GraphModule) -> bool:
    """Whether numbers or sizes that may differ from call to call are in one of Dynamo's graphs."""
    return reads_numbers(module) or next(symbolic_sizes(module), None) is not None


def symbolic_sizes(module: fx.GraphModule) -> Iterator[torch.SymInt]:
    """Sizes of the inputs of one of Dynamo's graphs that were symbols when it was traced, constants since or not."""
    for node in module.graph.find_nodes(op="placeholder"):
        example = node.meta.get("example_value")
        if isinstance(example, torch.Tensor) and example.layout == torch.strided:
            sizes: list[Any] = list(example.shape)
            yield from (size for size in sizes if isinstance(size, torch.SymInt))


def _name_of(env: ShapeEnv, symbol: sympy.Symbol) -> str:
    """A symbol's size of an input, as the user knows it; "" where it is none."""
    of_tensor = (s for s in env.var_to_sources.get(symbol, ()) if isinstance(s, TensorPropertySource))
    source = next((s for s in of_tensor if s.prop is TensorProperty.SIZE and s.idx is not None), None)
    return "" if source is None or source.idx is None else size_name(source.base, source.idx)


def symbols_of_sizes(module: fx.GraphModule) -> dict[sympy.Symbol, tuple[tuple[int, int], torch.SymInt]]:
    """The symbols that sizes in one of Dynamo's graphs are made of: input and dimension of each, and it itself.

    Dynamo hands sizes over as inputs of their own only where code reads them.
    """
    found: dict[sympy.Symbol, tuple[tuple[int, int], torch.SymInt]] = {}
    for position, node in enumerate(module.graph.find_nodes(op="placeholder")):
        example = node.meta.get("example_value")
        if not isinstance(example, torch.Tensor) or example.layout != torch.strided:
            continue
        sizes: list[Any] = list(example.shape)
        for dimension, size in enumerate(sizes):
            if is_symbol(size) and isinstance(size.node.expr, sympy.Symbol) and _is_of_tensors(size):
                found.setdefault(size.node.expr, ((position, dimension), size))
    return found


def _is_of_tensors(size: torch.SymInt) -> bool:
    """Whether a size follows from those of the inputs, and neither from data nor from a number that may change."""
    sources = size.node.shape_env.var_to_sources
    symbols = size.node.expr.free_symbols
    return all(any(isinstance(s, TensorPropertySource) for s in sources.get(symbol, ())) for symbol in symbols)


def dynamic_with(offload: object, dynamic: Dynamic) -> Dynamic:
    """Which sizes may change: with `offload` none, as a plan then knows the bytes that it moves.

    Raises UsageError where some are asked for.
    """
    if offload is None:
        return dynamic
    if dynamic:
        raise UsageError("offload= does not go with dynamic= yet: with it each set of shapes is captured by itself")
    return False

"""The symbols that the sizes of one graph's inputs are made of, and what they were in the calls that came."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import sympy
from torch import fx

from graphopt.capture.changing_sizes import conditions_on_sizes, named_sizes, symbols_of_sizes
from graphopt.device.storages import known
from graphopt.graph.at_sizes import AtSizes
from graphopt.run.graphs.call_key import Shapes

logger = logging.getLogger("graphopt")

Sizes = Mapping[sympy.Symbol, int]


class InputSymbols:
    """The symbols of sizes, and which dimension of which flat input each is; `captured` is what they were then."""

    def __init__(self, module: fx.GraphModule) -> None:
        found = symbols_of_sizes(module)
        self._places = {symbol: place for symbol, (place, _) in found.items()}
        self.captured: Sizes = {symbol: known(size) for symbol, (_, size) in found.items()}
        self._named = named_sizes(module)
        #: What must hold of sizes for the graph to be right; known once Dynamo has met it.
        self.conditions: tuple[str, ...] = ()
        self._by_shapes: WeakKeyDictionary[Shapes, Sizes] = WeakKeyDictionary()

    def sizes_of(self, args: Sequence[Any]) -> Sizes:
        """What they are in a call that runs the graph on `args`."""
        return {symbol: int(args[at].shape[dimension]) for symbol, (at, dimension) in self._places.items()}

    def are_met(self, module: fx.GraphModule) -> None:
        """Dynamo has met the graph: nothing more can be asked of its sizes."""
        self.conditions = conditions_on_sizes(module)
        for condition in self.conditions:
            logger.info("this capture serves sizes with %s", condition)

    def come(self, shapes: Shapes, args: Sequence[Any]) -> None:
        """A call with inputs of these shapes runs the graph on `args`; where one came before, the larger count."""
        if not self._places:
            return
        now = self.sizes_of(args)
        before = self._by_shapes.get(shapes)
        if before is not None and before != now:
            now = {symbol: max(size, before[symbol]) for symbol, size in now.items()}
        self._by_shapes[shapes] = now

    def named_at(self, sizes: Sizes) -> Mapping[str, int]:
        """The sizes that are made of them, by the names that the user knows."""
        at = AtSizes(sizes)
        return {name: int(at(size)) for name, size in self._named.items()}

    def named_in(self, shapes: Shapes) -> Mapping[str, int]:
        """The same in calls with inputs of these shapes."""
        return self.named_at(self.sizes_in(shapes))

    def sizes_in(self, shapes: Shapes) -> Sizes:
        """What they are in calls with inputs of these shapes; as captured where none came."""
        return self._by_shapes.get(shapes, self.captured)

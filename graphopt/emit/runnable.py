"""Runnable: one emitted graph as autograd calls it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from graphopt.emit.backward import BackwardModules
from graphopt.emit.direct import direct

#: Runs a boxed GraphModule on a list of arguments, which it empties.
Observer = Callable[[fx.GraphModule, list[Any]], Any]
#: Calls a Runnable's `run` on the list of arguments that autograd gave, and more; gives autograd the results.
Around = Callable[["Runnable", list[Any]], Any]


@dataclass(eq=False)
class Runnable:
    """A boxed GraphModule: its own code runs, or an `observer` of it, which is how verification looks inside.

    What is `around` it stands between autograd and the graph. A backward has `modules`: which of them runs depends on
    the tangents that are not None, and so do the gradients that are.
    """

    module: fx.GraphModule
    around: Around | None = None
    modules: BackwardModules | None = None
    observer: Observer | None = None
    #: What is called in place of the code of these modules.
    lowered: Mapping[fx.GraphModule, Callable[..., Any]] = field(default_factory=dict)
    #: The code of the modules that ran, as it is called.
    _calls: dict[fx.GraphModule, Callable[..., Any]] = field(default_factory=dict)
    #: What AOTAutograd looks at to know that arguments come in a list that may be emptied.
    _boxed_call: bool = True

    def __call__(self, args: list[Any]) -> Any:
        return self.run(args) if self.around is None else self.around(self, args)

    def run(self, args: list[Any]) -> Any:
        """Run the graph on its own arguments, which are emptied."""
        module = self.module
        if self.modules is not None:
            defined = self.modules.defined(args)
            if not defined:
                args.clear()
                return self.modules.no_gradients()
            module = self.modules.of(defined)
        if self.observer is not None:
            return self.observer(module, args)
        if module not in self._calls:
            self._calls[module] = self.lowered.get(module) or direct(module)
        return self._calls[module](args)


@contextmanager
def observed(runnables: Iterable[Runnable], observer: Observer) -> Iterator[None]:
    """Inside, `observer` runs these graphs."""
    graphs = list(runnables)
    before = [graph.observer for graph in graphs]
    for graph in graphs:
        graph.observer = observer
    try:
        yield
    finally:
        for graph, earlier in zip(graphs, before, strict=True):
            graph.observer = earlier

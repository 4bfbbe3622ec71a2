"""Runnable: one emitted graph as autograd calls it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import fx

#: Runs a boxed GraphModule on a list of arguments, which it empties.
Observer = Callable[[fx.GraphModule, list[Any]], Any]


@dataclass(eq=False)
class Runnable:
    """A boxed GraphModule: its own code runs, or an `observer` of it, which is how verification looks inside."""

    module: fx.GraphModule
    observer: Observer | None = None
    #: What AOTAutograd looks at to know that arguments come in a list that may be emptied.
    _boxed_call: bool = True

    def __call__(self, args: list[Any]) -> Any:
        return self.module.forward(args) if self.observer is None else self.observer(self.module, args)


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

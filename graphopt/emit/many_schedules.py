"""One captured graph, emitted with as many schedules as its sizes ask for, behind one compilation of AOTAutograd's.

Its runtime is told once how many numbers a forward saves, and counts the tensors at each call: every schedule's forward
saves the same numbers, the last of which says which schedule it was, so that the backward is that of its forward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx

from graphopt.emit.backward import BackwardModules
from graphopt.emit.emit import WHICH_SCHEDULE, Emitted, boxed, unwatched
from graphopt.emit.runnable import Around, Runnable
from graphopt.graph.numbers import is_number
from graphopt.problem.schedule import Schedule

#: Schedules whose code is kept; the least recently used goes, and is written again where it is asked for.
MOST_SCHEDULES = 32


@dataclass(frozen=True, eq=False)
class BoxedCall:
    """A function that takes its arguments in a list, which it empties."""

    run: Callable[[list[Any]], Any]
    #: What AOTAutograd looks at to know that.
    _boxed_call: bool = True

    def __call__(self, args: list[Any]) -> Any:
        return self.run(args)


@dataclass(frozen=True, eq=False)
class EmittedSchedule:
    """The two graphs of a schedule as autograd calls them."""

    number: int
    emitted: Emitted
    forward: Runnable
    backward: Runnable


def with_saved_unknown(forward: fx.GraphModule, num_outputs: int) -> fx.GraphModule:
    """A forward of which AOTAutograd learns how many numbers it saves, and nothing about the tensors: others differ."""
    graph = fx.Graph()
    outputs = graph.graph_copy(forward.graph, {})
    assert isinstance(outputs, tuple)

    def unknown(saved: fx.Node) -> fx.Node:
        return saved if is_number(saved) else graph.call_function(unwatched, (saved,))

    graph.output((*outputs[:num_outputs], *map(unknown, outputs[num_outputs:])))
    return boxed(forward, graph)


class ManySchedules:
    """The schedules of one graph. `write` emits one; `at_hand` holds those for which there is code."""

    def __init__(
        self,
        write: Callable[[Schedule], Emitted],
        name: str,
        around_forward: Around | None,
        around_backward: Around | None,
        at_hand: dict[Schedule, None],
    ) -> None:
        self.at_hand = at_hand
        self._write, self._name, self._around = write, name, (around_forward, around_backward)
        self._numbers: dict[Schedule, int] = {}
        self._schedules: list[Schedule] = []
        #: The least recently used first.
        self._there: dict[int, EmittedSchedule] = {}
        self._selected: EmittedSchedule | None = None
        self._position = -1

    def of(self, schedule: Schedule) -> EmittedSchedule:
        """A schedule, emitted where it is not there."""
        if schedule not in self._numbers:
            self._numbers[schedule] = len(self._schedules)
            self._schedules.append(schedule)
        return self._numbered(self._numbers[schedule])

    def selecting(self, number: int, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, whose forward is then that of the schedule with this number."""

        def run(*args: Any) -> Any:
            self._selected = self._numbered(number)
            return call(*args)

        return run

    def forward(self) -> BoxedCall:
        """What AOTAutograd calls: the forward of the schedule that is selected."""

        def run(args: list[Any]) -> list[Any]:
            assert self._selected is not None
            results = list(self._selected.forward(args))
            results[-1] = self._selected.number
            return results

        return BoxedCall(run)

    def backward(self) -> BoxedCall:
        """What AOTAutograd calls: the backward of the schedule that the forward ran with."""

        def run(args: list[Any]) -> Any:
            return self._numbered(args[self._position]).backward(args)

        return BoxedCall(run)

    def _numbered(self, number: int) -> EmittedSchedule:
        # by number: a schedule's hash takes all of its steps, at every call
        found = self._there.pop(number, None) or self._emit(number)
        self._there[number] = found
        while len(self._there) > MOST_SCHEDULES:
            oldest = next(iter(self._there))
            del self._there[oldest]
            self.at_hand.pop(self._schedules[oldest], None)
        return found

    def _emit(self, number: int) -> EmittedSchedule:
        schedule = self._schedules[number]
        self.at_hand[schedule] = None
        emitted = self._write(schedule)
        inputs = emitted.backward.graph.find_nodes(op="placeholder")
        self._position = next(i for i, node in enumerate(inputs) if node.name == WHICH_SCHEDULE)
        forward, backward = Runnable(emitted.forward, self._around[0]), Runnable(emitted.backward, self._around[1])
        backward.modules = BackwardModules(emitted.backward, emitted.whole_backward, self._name)
        return EmittedSchedule(number, emitted, forward, backward)

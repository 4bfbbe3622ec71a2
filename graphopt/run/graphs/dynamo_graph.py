"""One of Dynamo's graphs: first met, then planned and compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import fx

from graphopt.capture.ambient import Ambient
from graphopt.capture.aot import CaptureRequest, CompiledGraph, Decide, break_reason, capture_only, compile_graph
from graphopt.capture.by_shape import UnguardedSizeError
from graphopt.capture.captures import Capture
from graphopt.capture.changing_sizes import Sizes
from graphopt.device.snapshot import generators_kept
from graphopt.emit.runnable import Around, Runnable
from graphopt.graph.captured_graph import CapturedGraph, Decision
from graphopt.graph.joint import JointGraph
from graphopt.passes.joint import RETURN_GRADIENTS, Passes, add_gradients
from graphopt.plan.choice import Choice
from graphopt.plan.found_scratch import SearchedGraph
from graphopt.plan.graph_study import GraphStudy
from graphopt.plan.other_sizes import GraphAtSizes
from graphopt.plan.planned_graph import PlannedGraph
from graphopt.run.graphs.autocast_backward import (
    has_full_precision_products,
    say_if_backward_is_inside,
    warn_of_rounding,
)
from graphopt.run.graphs.call_key import CallKey, Shapes
from graphopt.run.graphs.depending_outputs import DependingOutputs, positions_between
from graphopt.run.graphs.gradients import GradientSums, ParameterSlot, parameter_slots
from graphopt.run.graphs.input_symbols import InputSymbols
from graphopt.run.graphs.meeting_graphs import saving_nothing, written_inputs
from graphopt.run.graphs.studies import Studies
from graphopt.run.graphs.tangents import Tangents
from graphopt.run.model.short_step import Extend

#: Decides how what is planned is to run.
Plan = Callable[[GraphStudy], Decision]


class Search(Protocol):
    """Looks for what ops take."""

    def runs(self, at_sizes: GraphAtSizes, runnables: Sequence[Runnable], /) -> None:
        """These are run."""


@dataclass(frozen=True)
class Surroundings:
    """What a graph's owner has to say: what a call of it does, and what is around its forward and its backward.

    `is_alone` tells whether no other forward waits for its backward. `other_tangents_came` is called where a backward
    begins that was not planned. `search` is there while what ops take is looked for. `extend` makes the graph that is
    planned of the captured one; what it is made of is not run.
    """

    run: Callable[[DynamoGraph, tuple[Any, ...]], Any]
    around_forward: Around
    around_backward: Callable[[Callable[[list[Any]], Any], list[Any]], Any]
    is_alone: Callable[[], bool]
    other_tangents_came: Callable[[], None]
    search: Callable[[], Search | None]
    extend: Extend | None = None


@dataclass(eq=False)
class DynamoGraph:
    """One of Dynamo's graphs, and its plans for the calls in which it is run.

    `example_inputs` are fake: the graph outlives the batch, and must not hold it. `tracing` and `ambient` are what
    Dynamo knows of it, and the modes in which it met it, `capture` what it compiled for it; it `is_outermost` where it
    begins with the model's own call. `symbols` are those of its inputs that sizes are made of,
    as `sizes` allows.
    """

    module: fx.GraphModule
    example_inputs: Sequence[Any]
    tracing: Any
    ambient: Ambient
    is_outermost: bool
    around: Surroundings
    tangents: Tangents
    capture: Capture
    symbols: InputSymbols
    studies: Studies
    sizes: Sizes
    name: str = "model"
    compiled: dict[CallKey, CompiledGraph] = field(default_factory=dict)
    #: Of a graph that serves several sizes: as it adds its gradients or returns them, for all of its schedules.
    _serving: dict[bool, CompiledGraph] = field(default_factory=dict)
    sums: GradientSums = field(default_factory=GradientSums)
    #: The number of the model's call in which it was used last.
    last_call: int = 0
    #: What was asked of numbers while Dynamo met it; later it would not look at it.
    guards: int | None = None
    #: Whether eager would round in its backward, were that inside of autocast; and whether that was said.
    may_round: bool = False
    warned_of_rounding: bool = False

    def __call__(self, *args: Any) -> Any:
        return self.around.run(self, args)

    @property
    def is_whole_model(self) -> bool:
        """Whether Dynamo came to the end of the model in it; it may still not be the only graph of a call."""
        return self.is_outermost and not break_reason(self.module)

    def is_met(self) -> None:
        """Dynamo has met it: from now on nothing more can be asked of the numbers that it reads."""
        self.guards = self._count_guards()
        self.symbols.are_met(self.module)
        if self.is_whole_model and not self.symbols.captured and self.symbols.conditions:
            self.sizes.cannot_change(self.symbols.conditions[0])

    @cached_property
    def depending(self) -> DependingOutputs:
        """Its outputs that others of them are made of."""
        return DependingOutputs(positions_between(self.module))

    @cached_property
    def writes(self) -> tuple[int, ...]:
        """Positions of the inputs that it writes in place."""
        return written_inputs(self.module)

    def study(self, choice: Choice, adds: bool, shapes: Shapes) -> GraphStudy | None:
        """The joint graph, captured where it was not yet, for calls with these shapes; None if it needs no gradient."""
        if not self.studies.has(adds):
            with self._as_met():
                self.studies.captured(adds, capture_only(self._request(choice, adds)), choice)
        return self.studies.at(adds, self.symbols.sizes_in(shapes))

    def has_other_tangents(self, key: CallKey) -> bool:
        """Whether its plan for calls like `key` is for other tangents than came."""
        compiled = self.compiled.get(key)
        planned = compiled.planned_tangents if compiled is not None else None
        return planned is not None and self.tangents.differ_from(planned)

    def keeps_tangents(self, key: CallKey) -> None:
        """Where there is no plan for the tangents that came, those of its plan for calls like `key` stay."""
        self.tangents.stays = self.compiled[key].planned_tangents
        self._forgets_studies()

    def forgets_tangents(self) -> None:
        """Take no notice of the backwards that ran so far."""
        self.tangents.met = frozenset()
        self._forgets_studies()

    def compile(self, key: CallKey, choice: Choice, plan: Plan) -> None:
        """Capture it (again), to run as `plan` says in calls like `key`."""

        chosen: list[Decision] = []

        def decide(captured: CapturedGraph | None) -> Decision:
            if captured is not None:
                self.studies.captured(key.adds, captured, choice)
            study = self.studies.at(key.adds, self.symbols.sizes_in(key.shapes))
            assert study is not None
            chosen.append(plan(study))
            self.studies.serves(key.adds, chosen[-1].schedule, self.symbols.named_in(key.shapes))
            return chosen[-1]

        if self.around.extend is not None:
            self._plan_extended(key, self.around.extend, choice, decide)
        elif key.adds in self._serving:
            decide(None)
        else:
            self._compile(key, choice, decide)
        if key.adds in self._serving:
            self.compiled[key] = self._serving[key.adds].with_schedule(chosen[-1].schedule)

    def searched(self, key: CallKey, planned: PlannedGraph) -> SearchedGraph | None:
        """The graph as it is planned for calls like `key`, to look for what its ops take."""
        return self.studies.searched(key.adds, self.symbols.sizes_in(key.shapes), planned)

    def compile_without_gradients(self, key: CallKey, choice: Choice) -> None:
        """Compile a graph that needs no gradient, to run as it is."""

        def decide(_graph: CapturedGraph) -> Decision:
            raise AssertionError("a graph that was captured without gradients has some now")

        self._compile(key, choice, decide)

    def train(self, key: CallKey, args: tuple[Any, ...]) -> Any:
        """Run it as it is planned for calls like `key`."""
        compiled = self.compiled[key]
        if compiled.emitted is not None:
            self._tell_search(key.adds, compiled.runnables[:1])
        result = compiled.call(*args)
        self.depending.returned(result)
        autocast = next((name for name, _, _ in self.ambient.autocast if torch.is_autocast_enabled(name)), None)
        if autocast and self.may_round and not self.warned_of_rounding:
            say_if_backward_is_inside(result, autocast, self._warn_of_rounding)
        return result

    def run_only_to_meet(self, args: Sequence[Any]) -> Any:
        """Run it as it was captured; what it gives has gradients as in training, but nothing is kept for them."""
        with saving_nothing(self.module):
            return self.module(*args)

    def _came(self, defined: frozenset[int]) -> None:
        before = self.tangents.chosen
        if self.tangents.came(defined) and self.tangents.sets > 1:
            # they may lead to gradients that nobody has looked at yet
            self.sums.look_again()
        if self.tangents.are_chosen and self.tangents.chosen != before:
            self._forgets_studies()

    def _compile(self, key: CallKey, choice: Choice, decide: Decide) -> None:
        with self._as_met():
            compiled = self.compiled[key] = compile_graph(self._request(choice, key.adds), decide)
        if compiled.many is not None:
            self._serving[key.adds] = compiled
        emitted = compiled.emitted
        self.may_round = emitted is not None and has_full_precision_products(emitted.whole_backward or emitted.backward)

    def _plan_extended(self, key: CallKey, extend: Extend, choice: Choice, decide: Decide) -> None:
        """Capture it to plan what it stands for."""

        def refuse(*_args: Any) -> Any:
            raise AssertionError("a graph that stands for a larger one is not run")

        with self._as_met():
            captured = capture_only(self._request(choice, key.adds))
        if captured is not None:
            decide(extend(captured, self.module))
            self.compiled[key] = CompiledGraph(refuse, None, [])

    def _tell_search(self, adds: bool, runnables: Sequence[Runnable]) -> None:
        """These are about to run; a backward is compiled when it first does."""
        search, graph = self.around.search(), self.studies.graph(adds)
        if search is not None and graph is not None:
            search.runs(graph, runnables)

    def _forgets_studies(self) -> None:
        self.studies.clear()
        self._serving.clear()

    def _warn_of_rounding(self) -> None:
        if not self.warned_of_rounding:
            self.warned_of_rounding = True
            warn_of_rounding()

    def _count_guards(self) -> int:
        return len(self.tracing.fake_mode.shape_env.guards)

    @contextmanager
    def _as_met(self) -> Iterator[None]:
        """Inside, all is as when Dynamo met the graph; its backward is captured without autocast, as it should run."""
        without_autocast = torch._functorch.config.patch(backward_pass_autocast="off")
        with generators_kept(), torch._guards.tracing(self.tracing), self.ambient.restored(), without_autocast:
            yield
        asked = [str(guard.expr) for guard in self.tracing.fake_mode.shape_env.guards[self.guards :]]
        if self.guards is not None and asked:
            raise UnguardedSizeError(
                f"the capture of a part asked of sizes what Dynamo does not guard ({', '.join(asked)}): dynamic=False "
                "captures each shape by itself"
            )

    def _request(self, choice: Choice, adds: bool) -> CaptureRequest:
        slots: list[ParameterSlot] = []

        def hand_over(joint: JointGraph, static_inputs: Sequence[int]) -> Passes:
            slots[:] = parameter_slots(joint, static_inputs)
            return add_gradients([slot.position for slot in slots]) if adds else RETURN_GRADIENTS

        def backward(runnable: Runnable, args: list[Any]) -> Any:
            self.depending.warn_if_watched()
            self._tell_search(adds, [runnable])

            def run(args: list[Any]) -> Any:
                assert runnable.modules is not None
                defined = runnable.modules.defined(args)
                self._came(defined)
                if defined != runnable.modules.planned:
                    if not runnable.modules.is_within_plan(defined):
                        self.around.other_tangents_came()
                    return runnable.run(args)
                if adds:
                    return self.sums.adding(slots, runnable.module, self.around.is_alone(), runnable.run, args)
                return self.sums.watching(slots, runnable.run, args)

            return self.around.around_backward(run, args)

        around = (self.around.around_forward, backward)
        options = (choice.cost_model, self.name, hand_over, *around, self.tangents, choice.compiler)
        at_hand = self.studies.at_hand(adds)
        return CaptureRequest(self.module, self.example_inputs, *options, at_hand=at_hand, sizes=self.sizes)

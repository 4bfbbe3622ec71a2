"""What a training loop does around a model's calls, as far as it changes what there is room for."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from graphopt.device.peak_window import peak_window
from graphopt.device.snapshot import generators_kept
from graphopt.emit.runnable import Runnable
from graphopt.plan.found_scratch import StepAbovePlan
from graphopt.plan.resident import with_gradients
from graphopt.plan.shares import joint_peak_bytes
from graphopt.problem.found_scratch import FoundScratch
from graphopt.run.calls.call_plan import CallPlan
from graphopt.run.calls.forwards import Forwards, Pattern
from graphopt.run.graphs.call_key import Call, CallKey, KnownShapes, Shapes
from graphopt.run.graphs.dynamo_graph import DynamoGraph, Surroundings
from graphopt.run.graphs.gradients import GradientSums, Run, all_add, gradient_bytes, gradients_of
from graphopt.run.model.part import Part
from graphopt.run.model.request import Request
from graphopt.run.model.short_step import extension_of
from graphopt.run.model.wrapping import Wrapping, bytes_of, holds_gradients, is_sharded
from graphopt.run.watch.causes import IN_GRAPHS
from graphopt.run.watch.corrections import Corrected, Corrections
from graphopt.run.watch.measured_step import MeasuredStep
from graphopt.run.watch.scratch_search import ScratchSearch
from graphopt.run.watch.sharded_watch import ShardedWatch
from graphopt.run.watch.watch import Watch


class Loop:
    """Forwards that wait for their backward, gradients that stay, and the watch over all of it.

    `corrected` is called where the watch found that there is less room than was thought; `plans_loss` tells whether a
    plan can have a loss in it.
    """

    def __init__(
        self, model: nn.Module, request: Request, corrected: Callable[[], None], plans_loss: Callable[[], bool]
    ) -> None:
        self.watch: Watch | None = None
        self.shapes = KnownShapes()
        self._model, self._request, self._plans_loss = model, request, plans_loss
        self._forget_plans = corrected
        self._search: ScratchSearch | None = None
        self._searched_steps = 0
        self._last_plan: CallPlan | None = None
        self._forwards, self._pattern = Forwards(), Pattern()
        #: Held while the model is called, which several threads may.
        self.one_at_a_time = threading.RLock()

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """Inside, a model is called that FSDP2 shards: it gathers parameters before the call begins."""
        if (part := self._request.part) is not None:
            part.arrives()
            yield
            part.departs()
            return
        if not isinstance(self.watch, ShardedWatch):
            self.watch = watch_of(self._model, self._request, self._corrects, self._plans_loss)
        if isinstance(self.watch, ShardedWatch):
            self.watch.arrives()
        yield
        if isinstance(self.watch, ShardedWatch):
            self.watch.departs()

    def begins(
        self, call: Call, sums_of: Callable[[Shapes], Sequence[GradientSums]], wrapping: Wrapping | None
    ) -> CallKey:
        """A call begins: the circumstances in which it is made.

        `sums_of` says for the shapes of a call how its graphs hand gradients over. DDP must find each gradient anew,
        as it copies it into a bucket.
        """
        waiting, holders = self._forwards.waiting(), self._holders(wrapping)
        gradients = gradients_of(holders)
        if not waiting and self.search() is not None:
            self._heed_search()
        sharded = is_sharded(self._model)
        shapes, tensors = self.shapes.and_tensors_of(call)
        self.watch = self.watch or watch_of(self._model, self._request, self._corrects, self._plans_loss)
        if self.watch is not None:
            held = sum(bytes_of(wrapping, self._model).values()) if wrapping is not None else 0
            self.watch.begins(shapes, tensors, gradients, held, is_behind=bool(waiting))
        pattern = self._pattern.met(shapes, tuple(forward.key.shapes for forward in waiting))
        if waiting and not pattern and self.watch is not None:
            self.watch.is_unexpected()
        there = bool(gradients) and not sharded
        if waiting or pattern:
            return CallKey(shapes, pattern=pattern, behind=not pattern, keeps=there)
        # a transfer that fails must not leave gradients that are added to in part
        may_add = there and wrapping is None and self._request.choice.offload is None
        adds = may_add and all_add(holders, sums_of(shapes))
        return CallKey(shapes, adds=adds, keeps=there and not adds)

    def ends(self, plan: CallPlan | None, result: Any) -> None:
        """The call was run by its plan, or by none."""
        if plan is not None:
            self._last_plan = plan
            self._forwards.has_run(plan.key, plan, result)
        if plan is not None and self._request.part is not None:
            self._request.part.ran(plan.planned[0].study, plan.planned[0].schedule)
        if self.watch is not None:
            self.watch.forward_ends(plan.peak_bytes if plan is not None else 0, result)

    def raised(self) -> None:
        """The call ended in an error of the model's own."""
        if self.watch is not None:
            self.watch.forward_raised()

    def pauses(self) -> None:
        """The model is called for something else than training."""
        if self.watch is not None:
            self.watch.ends()

    def tries_without(self) -> bool:
        """Nothing fits beside what the watch measured: True where a step may be tried as if that did not come again."""
        return self.watch is not None and self.watch.corrections.tries_without()

    def sets_aside(self, size: int) -> None:
        """So many bytes of copies are held in host memory from now on, which are no part of a step; 0: none are.

        Nor is what was taken since the call began.
        """
        if self.watch is None:
            return
        if not self.watch.is_on_cuda:
            self.watch.aside_bytes = size
        if size:
            self.watch.look_away()

    def away(self) -> AbstractContextManager[None]:
        """Inside is captured or planned: what that takes is no part of a step; nor is the time of what runs then."""
        return self.watch.away() if self.watch is not None else nullcontext()

    def surroundings(self, run: Callable[[DynamoGraph, tuple[Any, ...]], Any]) -> Surroundings:
        """What is around the graphs of the model; `run` is called in their place.

        Dynamo keeps graphs for good: they must not keep the loop, and with it the model.
        """
        loop = weakref.ref(self)

        def around_forward(runnable: Runnable, args: list[Any]) -> Any:
            this = loop()
            around = this._around if this is not None else None
            return runnable.run(args) if around is None else around.around_forward(runnable.run, args)

        def around_backward(run: Run, args: list[Any]) -> Any:
            this = loop()
            if this is None:  # its outputs outlived the model
                return run(args)
            around = this._around
            result = run(args) if around is None else around.around_backward(run, args)
            this._forwards.backward_runs()
            return result

        def is_alone() -> bool:
            this = loop()
            return this is not None and len(this._forwards.waiting()) <= 1

        def other_tangents_came() -> None:
            this = loop()
            if this is not None and this.watch is not None:
                this.watch.other_tangents_came()

        def search() -> ScratchSearch | None:
            this = loop()
            return this.search() if this is not None else None

        extend = extension_of(self._model)
        around = (around_forward, around_backward)
        return Surroundings(run, *around, is_alone, other_tangents_came, search, extend)

    def search(self) -> ScratchSearch | None:
        """Looks for the operators that took more than planned; None where nothing does."""
        return self._search if self._search is not None and self._search.is_running else None

    @property
    def found_scratch(self) -> tuple[FoundScratch, ...]:
        """The operators that took more than planned, as far as they were found."""
        return tuple(self._search.found.values()) if self._search is not None else ()

    def _corrects(self, above_plan: MeasuredStep | None) -> bool:
        """There is less room than was thought, perhaps as a step was above its plan because of a planned graph.

        True where the operator is looked for that this was.
        """
        self._forget_plans()
        if above_plan is None or self._last_plan is None or not self._may_search():
            return False
        assert self.watch is not None
        above = self._above_plan(self._last_plan, above_plan)
        if above is None:
            return False
        self._search = self._search or ScratchSearch()
        if not self._search.is_running:
            self._searched_steps = self.watch.history.total
        self._search.begins(above)
        return True

    def _may_search(self) -> bool:
        """Whether graphs may run node by node: not compiled ones; and on CUDA a peak is known for whole steps alone."""
        watch = self.watch
        is_plain = watch is not None and not watch.is_on_cuda and watch.sharding is None
        return is_plain and self._request.choice.compiler == "eager"

    def _above_plan(self, plan: CallPlan, measured: MeasuredStep) -> StepAbovePlan | None:
        """None where a graph of the step was forgotten meanwhile, as its model has become another one."""
        assert self.watch is not None
        pairs = dict(zip(plan.graphs, plan.planned, strict=True))
        searched = {graph: graph.searched(plan.key, planned) for graph, planned in pairs.items()}
        graphs = tuple(found for graph in plan.graphs if (found := searched[graph]) is not None)
        above_bytes = self.watch.corrections.above_plan(measured, plan.resident_bytes.get(IN_GRAPHS, 0))
        return StepAbovePlan(graphs, above_bytes, joint_peak_bytes) if len(graphs) == len(plan.graphs) else None

    def _heed_search(self) -> None:
        """A step may have been run node by node: count what it shows, and plan anew."""
        search, watch, plan = self._search, self.watch, self._last_plan
        assert search is not None and watch is not None and plan is not None
        if not search.has_run or watch.history.total == self._searched_steps:
            return
        self._searched_steps = watch.history.total
        beside_bytes = sum(plan.resident_bytes.values()) - plan.resident_bytes.get(IN_GRAPHS, 0)
        step = self._above_plan(plan, watch.history[-1])
        if step is None:
            search.ends()
            return
        found = search.ends_step(step, self._request.budget_bytes - beside_bytes)
        if found is not None:
            watch.corrections.is_located(found)
            self._forget_plans()

    def held_bytes(
        self,
        key: CallKey,
        input_bytes: Callable[[Shapes], int],
        device: torch.device,
        wrapping: Wrapping | None,
    ) -> dict[str, int]:
        """What is there beside the model while a call is run, by kind; `input_bytes` of calls with these shapes."""
        if is_sharded(self._model):
            return self.watch.corrections.extra_bytes if self.watch is not None else {}
        kinds = {"gradients": gradient_bytes(gradients_of(self._holders(wrapping)), device)}
        others = list(key.pattern)
        if key.pattern:
            others.remove(key.shapes)
        if key.behind and device.type != "cuda":  # there all that is allocated is counted as "other"
            waiting = self._forwards.waiting()
            others = [forward.key.shapes for forward in waiting]
            kinds["earlier forwards"] = sum(forward.plan.saved_bytes for forward in waiting)
        if others:
            kinds["inputs of other forwards before the same backward"] = sum(map(input_bytes, others))
        return kinds | (self.watch.corrections.extra_bytes if self.watch is not None else {})

    @property
    def _around(self) -> Watch | Part | None:
        """Who is told when graphs run."""
        return self.watch if self._request.part is None else self._request.part

    def _holders(self, wrapping: Wrapping | None) -> list[nn.Parameter]:
        """The parameters that hold gradients, but where those are a part of what wraps the model."""
        return [] if holds_gradients(wrapping) else with_gradients(self._model)


@generators_kept()
def watch_of(model: nn.Module, request: Request, corrected: Corrected, plans_loss: Callable[[], bool]) -> Watch | None:
    """A watch over a model's steps; None where its device's memory cannot be measured, or others watch over it."""
    first = next(iter((*model.parameters(), *model.buffers())), None)
    device = first.device if first is not None else torch.device("cpu")
    window = peak_window(device) if request.part is None else None
    corrections = Corrections(request, corrected, plans_loss)
    over = ShardedWatch if is_sharded(model) else Watch
    return None if window is None else over(model, window, device, request, corrections)

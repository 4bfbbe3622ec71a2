"""The bytes of a training step: each micro-batch planned in what the budget leaves it, and the whole summed up."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch._subclasses import FakeTensor

from graphopt.base.errors import UsageError
from graphopt.base.progress import phase
from graphopt.base.units import format_bytes
from graphopt.cost_models.model_state import float32_bytes, nbytes
from graphopt.device.ranks import Ranks
from graphopt.device.storages import tensors_in, unique_storage_bytes
from graphopt.plan.agreement import plan_as_one
from graphopt.plan.choice import Choice
from graphopt.plan.infeasible import tail_error
from graphopt.plan.planned_graph import PlannedGraph
from graphopt.plan.resident import other_bytes, resident_of_model
from graphopt.plan.room import Room
from graphopt.plan.workspaces import take_workspaces
from graphopt.problem.plan import Plan
from graphopt.run.calls.make_plans import at_least_the_smallest, making_best
from graphopt.run.graphs.gradients import gradient_bytes, gradients_there
from graphopt.run.watch.causes import IN_GRAPHS
from graphopt.run.watch.measured_step import Place
from graphopt.step.micro_batches.micro_graph import Learning, Micro, MicroGraph
from graphopt.step.optimizer.optimizer_view import OptimizerView
from graphopt.step.tail_memory import TailOptions, kept_table_bytes, tail_bytes

logger = logging.getLogger("graphopt")


@dataclass(frozen=True, eq=False)
class PlannedMicro:
    """A planned micro-batch, what is there while it runs, and what the step's tail then holds beside that, by kind."""

    planned: PlannedGraph
    learning: Learning
    resident_bytes: dict[str, int]
    tail_bytes: dict[str, int]

    @cached_property
    def peak_bytes(self) -> int:
        """The most that is there at once, in the micro-batch or after it."""
        return self.peak_of(self.planned.peak_bytes)

    @cached_property
    def eager_peak_bytes(self) -> int:
        """The same with nothing recomputed."""
        return self.peak_of(self.planned.study.origin.eager.peak_bytes)

    def peak_of(self, own_bytes: int) -> int:
        """The same for a schedule of `own_bytes`."""
        return max(sum(self.resident_bytes.values()) + own_bytes, self.peaks[Place.UPDATE])

    @cached_property
    def peaks(self) -> dict[Place, int]:
        """The most that is there at once in the micro-batch, and after it."""
        resident_bytes = sum(self.resident_bytes.values())
        behind_bytes = resident_bytes - self.resident_bytes.get(IN_GRAPHS, 0)
        return {
            Place.GRAPHS: resident_bytes + self.planned.peak_bytes,
            Place.UPDATE: behind_bytes + sum(self.tail_bytes.values()),
        }


class StepMemory:
    """Plans the micro-batches of one step.

    `summed` says whether their gradients are summed up, `batch` what the global batch is (see `comes`): both may
    change before the next one is planned. `fixed_bytes` are what the last one took whatever its plan;
    `kept_bytes` what compression keeps for parameters of these names. `held` gives tensors of the step's own that
    are there already and counted by name, such as the sums of gradients when a second size of batch comes.

    `levels` and `above_bytes` are what steps were measured to take: at least so much of a kind, and so much beside the
    graphs. With `is_trial` the smallest plans are made, whether they fit or not.
    """

    def __init__(
        self,
        model: nn.Module,
        view: OptimizerView,
        choice: Choice,
        budget_bytes: int,
        reserve_bytes: int,
        tail: TailOptions,
        kept_bytes: Callable[[Iterable[str]], int] = lambda _: 0,
    ) -> None:
        self.model, self.view, self.choice, self.tail = model, view, choice, tail
        self.budget_bytes, self.reserve_bytes = budget_bytes, reserve_bytes
        self.kept_bytes = kept_bytes
        self.held: Callable[[], Iterable[torch.Tensor]] = tuple
        self.planners: Ranks | None = None
        self.summed = False
        self.batch: object = ()
        self._batch_bytes = 0
        self.levels: dict[str, int] = {}
        self.above_bytes = 0
        self.is_trial = False
        self._planned: dict[PlannedGraph, PlannedMicro] = {}
        #: What the step's tail holds, by kind, whatever the sizes of inputs.
        self._tails: WeakKeyDictionary[MicroGraph, dict[str, int]] = WeakKeyDictionary()
        self.fixed_bytes = 0
        self.plan_seconds = 0.0
        first = next(iter((*model.parameters(), *model.buffers())), None)
        self.device = first.device if first is not None else torch.device("cpu")

    def comes(self, batch: object) -> None:
        """This is the global batch for which micro-batches are planned next."""
        self.batch, self._batch_bytes = batch, unique_storage_bytes(tensors_in(batch), self.device)

    def is_outgrown(self, micro: Micro) -> bool:
        """Whether the batch holds more than the one for which a micro-batch is planned."""
        if not micro.is_planned or micro.planned not in self._planned:
            return False
        known_bytes = self._planned[micro.planned].resident_bytes["inputs"]
        # a part of the model among the inputs counts there
        return self._batch_bytes > known_bytes < resident_of_model(self.model, self.batch, self.device)["inputs"]

    @property
    def planned(self) -> list[PlannedMicro]:
        """What is planned, in the order in which it was."""
        return list(self._planned.values())

    def plan(self, micro: Micro) -> PlannedGraph:
        """Plan a micro-batch inside what the budget leaves it; raises BudgetError where it cannot be.

        Together with `planners`, a collective call, where there are such.
        """
        graph, learning, tail = micro.study, micro.graph.learning, self._tail_bytes(micro.graph)
        # the window's backward is a part of its graph
        take_workspaces([graph.graph.step], self.device, in_autograd=False)
        counted = self.resident(learning)
        resident = counted | {kind: max(size, counted.get(kind, 0)) for kind, size in self.levels.items()}
        resident |= {IN_GRAPHS: self.above_bytes} if self.above_bytes else {}
        self.fixed_bytes = sum(resident.values()) + sum(tail.values())

        in_best_form = making_best(graph, self.choice)

        def make(room: Room) -> list[PlannedGraph]:
            behind = {kind: size for kind, size in room.resident_bytes.items() if kind != IN_GRAPHS}
            if sum(behind.values()) + sum(tail.values()) > room.budget_bytes:
                link = self.choice.offload.link if self.choice.offload is not None else None
                raise tail_error(graph, room.budget_bytes, behind, tail, link)
            return in_best_form(room)

        def make_smallest(room: Room) -> list[PlannedGraph]:
            return at_least_the_smallest(make)(replace(room, budget_bytes=0))

        start = time.monotonic()
        how = make_smallest if self.is_trial else make
        with phase("planning"):
            (planned,) = plan_as_one(self.planners, [graph], Room(self.budget_bytes, resident), self.choice, how)
        self._now(PlannedMicro(planned, learning, resident, tail), time.monotonic() - start)
        if graph.pool is not None:
            graph.pool.serves(planned.schedule, micro.graph.symbols.named_at(micro.sizes))
            graph.forget_derived()  # of each of many sizes it would be kept
        return planned

    def forget(self, micro: Micro) -> None:
        """This micro-batch is not kept, or planned anew."""
        if micro.is_planned:
            self._planned.pop(micro.planned, None)

    def keep_only(self, planned: PlannedMicro) -> None:
        """Of all that was tried, this is what is run."""
        self._planned = {planned.planned: planned}

    def forget_plans(self) -> None:
        """There is another room: graphs and their curves stay known, and are planned anew when they are run."""
        self._planned = {}

    def forget_graphs(self) -> None:
        """The model is another one: nothing that was captured or measured holds for it."""
        self._planned, self.levels, self.above_bytes = {}, {}, 0
        self._tails.clear()

    def plans_of(self, micros: Iterable[Micro]) -> list[PlannedMicro]:
        """What was planned for these micro-batches."""
        distinct = dict.fromkeys(micro.planned for micro in micros)
        return [self._planned[planned] for planned in distinct if planned in self._planned]

    def grown(self, planned: PlannedMicro) -> dict[str, int]:
        """What there is now of the kinds of which there is more than was planned, each with all of its bytes."""
        now = self.resident(planned.learning)
        if self.summed:
            sums = unique_storage_bytes(self.held(), self.device) - now.get("compression", 0)
            now["gradients"] = max(sums, now.get("gradients", 0))
        return {kind: size for kind, size in now.items() if size > planned.resident_bytes.get(kind, 0)}

    def _tail_bytes(self, graph: MicroGraph) -> dict[str, int]:
        if graph not in self._tails:
            learning, runs = graph.learning, self.choice.cost_model != "roofline"
            dtypes = self._dtypes(learning.used if self.summed else learning.returned)
            self._tails[graph] = tail_bytes(self.view, dtypes, summed=self.summed, options=self.tail, run_ops=runs)
        return self._tails[graph]

    def _now(self, planned: PlannedMicro, seconds: float) -> None:
        self._planned[planned.planned] = planned
        self.plan_seconds += seconds
        logger.info(
            "planned a micro-batch in %.2f s: %s at the peak, %s of it resident",
            seconds,
            format_bytes(planned.peak_bytes),
            format_bytes(sum(planned.resident_bytes.values())),
        )

    def resident(self, micro: Learning) -> dict[str, int]:
        """Bytes by kind of what is there while a micro-batch runs, in which these parameters get gradients."""
        view, device, learning = self.view, self.device, (*micro.returned, *micro.used)
        kinds = resident_of_model(self.model, self.batch, device)
        kinds["masters"] = sum(nbytes(view.master(name)) for name in view.masters)
        kinds["optimizer"] = view.state_bytes(view.names[id(parameter)] for parameter in learning)
        sums = [view.summed(view.names[id(parameter)]) for parameter in learning]
        kinds["gradients"] = sum(map(float32_bytes, sums)) if self.summed else 0
        kinds["gradients of others"] = gradient_bytes(gradients_there(self.model), device)
        kinds["compression"] = self.kept_bytes(view.names[id(parameter)] for parameter in learning)
        kinds["reserve"] = self.reserve_bytes
        real = [tensor for tensor in tensors_in(self.batch) if not isinstance(tensor, FakeTensor)]
        held = (*view.masters.values(), *view.unpublished_state, *self.held())
        kinds["other"] = other_bytes(self.model, real, view.optimizer, device, held) + kept_table_bytes(learning)
        return {kind: size for kind, size in kinds.items() if size or kind in ("parameters", "inputs")}

    def shown(self) -> list[PlannedMicro]:
        """What is planned of each graph at the sizes at which eager takes the most."""
        found: dict[str, PlannedMicro] = {}
        for planned in self.planned:
            graph_hash = planned.planned.captured.step.graph_hash
            if planned.eager_peak_bytes > found.setdefault(graph_hash, planned).eager_peak_bytes:
                found[graph_hash] = planned
        return list(found.values())

    def build_plan(self, name: str) -> Plan:
        """The plan of the step, whose peak is the highest of its micro-batches'.

        Raises UsageError before anything is captured.
        """
        if not self._planned:
            raise UsageError("nothing is planned yet: call the step, or give train_step() example_inputs")
        highest, shown = self.highest(), self.shown()
        return Plan(
            model=name,
            device=str(self.device),
            torch_version=torch.__version__,
            budget_bytes=self.budget_bytes,
            peak_bytes=highest.peak_bytes,
            eager_peak_bytes=max(p.eager_peak_bytes for p in shown),
            minimum_bytes=max(p.peak_of(p.planned.study.minimum_bytes) for p in shown),
            resident_bytes=dict(highest.resident_bytes),
            graphs=tuple(p.planned.plan for p in shown),
        )

    def highest(self) -> PlannedMicro:
        """The planned micro-batch with the highest peak."""
        return max(self.planned, key=lambda planned: planned.peak_bytes)

    def _dtypes(self, parameters: Sequence[torch.Tensor]) -> dict[str, torch.dtype]:
        """Of their gradients, by name: sums of half ones are float32."""
        dtypes = (torch.promote_types(p.dtype, torch.float32) if self.summed else p.dtype for p in parameters)
        return {self.view.names[id(p)]: dtype for p, dtype in zip(parameters, dtypes, strict=True)}

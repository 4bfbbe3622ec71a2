"""How a step's batches are cut into micro-batches: as the user says, or so that a step is fastest inside the budget."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

from torch.nn.modules.batchnorm import _BatchNorm

from graphopt.base.errors import BudgetError, CaptureError, GraphoptError
from graphopt.base.rounding import ceil_div
from graphopt.base.units import UNLIMITED_BYTES, format_bytes
from graphopt.capture.by_shape import goes_by_shape
from graphopt.capture.changing_sizes import Sizes
from graphopt.capture.check_tensors import check_tensors
from graphopt.device.storages import tensors_in
from graphopt.run.model.loss_module import LossModule
from graphopt.step.memory import PlannedMicro, StepMemory
from graphopt.step.micro_batches.micro import Around, HandOver, Micros
from graphopt.step.micro_batches.micro_graph import MicroCall
from graphopt.step.micro_batches.window import MicroBatch, Weights, cut, rows_of

#: How many micro-batches, or to choose that.
Accumulate = int | Literal["auto"]


@dataclass(frozen=True, eq=False)
class Trial:
    """One way to cut a batch of `rows`: captured and planned, not run.

    `minimum_bytes` is the least budget that would do, of which `fixed_bytes` are there whatever the
    micro-batch's size. Where it does not fit, `micro` is None and `error` says why; where the model takes
    no batch of this size (batch norm wants two rows), no budget would do.
    """

    rows: int
    micro_rows: int
    minimum_bytes: int
    fixed_bytes: int
    trial_seconds: float
    micro: PlannedMicro | None = None
    error: GraphoptError | None = None

    @property
    def accumulate(self) -> int:
        """The number of micro-batches; the last one may be short."""
        return ceil_div(self.rows, self.micro_rows)

    @property
    def seconds(self) -> float:
        """Predicted seconds of all micro-batches, a short one by its rows; infinite where they do not fit."""
        return self._of_batch(self.micro.planned.simulation.seconds) if self.micro else float("inf")

    @property
    def eager_seconds(self) -> float:
        """The same with nothing recomputed."""
        return self._of_batch(self.micro.planned.study.origin.eager.seconds) if self.micro else float("inf")

    def _of_batch(self, micro_seconds: float) -> float:
        return micro_seconds * self.rows / self.micro_rows


#: For the last micro-batch of a window or another one: what tells its pass from others, and the pass.
HandOvers = Callable[[bool], tuple[object, HandOver]]


class Division:
    """Cuts batches and has the graphs of the pieces; what `hand_over` gives is as in `Micros`.

    Gradients are summed up where a batch is cut at all, which the first batch decides, and `always_summed`
    where they go to other processes.
    """

    def __init__(
        self,
        module: LossModule,
        memory: StepMemory,
        hand_over: HandOvers,
        accumulate: Accumulate,
        weights: Weights,
        sizes: Sizes,
        *,
        always_summed: bool = False,
        around_capture: Around = nullcontext,
    ) -> None:
        self.memory, self.accumulate, self.weights = memory, accumulate, weights
        self.micro_rows = 0
        self._module, self._hand_over, self._always_summed, self._sizes = module, hand_over, always_summed, sizes
        self._around_capture = around_capture
        self._is_cut = self._captured = self._is_checked = False
        self._micros: dict[tuple[object, ...], Micros] = {}

    def cut(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[MicroBatch]:
        """The micro-batches of a batch; raises BudgetError where no way to cut the first one fits."""
        self.memory.comes((args, kwargs))
        if not self.micro_rows or not self._is_checked:
            check_tensors(self._module, tensors_in((args, kwargs)))
            self._is_checked = True
        rows = rows_of(args, kwargs)
        if not self.micro_rows:
            if self.accumulate == "auto":
                self._choose(args, kwargs)
            else:
                self.settle(ceil_div(rows, self.accumulate), is_cut=self.accumulate > 1)
        return cut(args, kwargs, self.micro_rows if self._is_cut else max(rows, 1), self.weights)

    def settle(self, micro_rows: int, *, is_cut: bool) -> None:
        """From now on batches are cut into micro-batches of so many rows, or not cut."""
        self.micro_rows, self._is_cut = micro_rows, is_cut
        self.memory.summed = is_cut or self._always_summed

    def resolve(self, piece: MicroBatch, *, is_last: bool = True) -> MicroCall:
        """The graph of a micro-batch, captured where it is new, and what goes into it."""
        call = self._micros_now(is_last).resolve(piece.args, piece.kwargs)
        if self.memory.is_outgrown(call.micro):
            self.memory.forget(call.micro)
            call.micro.forget_plan()
        return call

    def trial(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], micro_rows: int) -> Trial:
        """Capture and plan the first micro-batch of `micro_rows`, whether it fits or not.

        Raises CaptureError where nothing could be captured before.
        """
        rows, memory = rows_of(args, kwargs), self.memory
        memory.comes((args, kwargs))
        memory.summed = micro_rows < rows or self._always_summed
        piece = cut(args, kwargs, micro_rows, None)[0]
        start = time.monotonic()
        try:
            planned = self.resolve(piece).micro.planned
        except BudgetError as error:
            self._captured = True
            spent = time.monotonic() - start
            return Trial(rows, micro_rows, error.minimum_bytes, memory.fixed_bytes, spent, error=error)
        except CaptureError as error:
            if not self._captured:
                raise
            return Trial(rows, micro_rows, UNLIMITED_BYTES, 0, time.monotonic() - start, error=error)
        self._captured = True
        micro = next(micro for micro in memory.planned if micro.planned is planned)
        minimum_bytes = micro.peak_of(micro.planned.study.minimum_bytes)
        return Trial(rows, micro_rows, minimum_bytes, memory.fixed_bytes, time.monotonic() - start, micro)

    def forget_plans(self) -> None:
        """There is another room: what is captured stays, and is planned anew when it is run."""
        self.memory.forget_plans()
        for micros in self._micros.values():
            micros.forget_plans()

    def goes_by_shape(self) -> bool:
        """Nothing fits: whether that is worth another try, as each shape is captured by itself from now on."""
        if not goes_by_shape(self._sizes, self.memory.choice):
            return False
        self.forget_graphs()
        return True

    def forget_graphs(self) -> None:
        """The model has other parameters: it is checked and captured anew."""
        self._is_checked = False
        self._micros.clear()
        self.memory.forget_graphs()

    def _choose(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        trials = list(
            walk(rows_of(args, kwargs), self.memory.budget_bytes, lambda rows: self.trial(args, kwargs, rows))
        )
        best = min(trials, key=lambda trial: trial.seconds)
        if best.micro is None:
            raise none_fits(trials)
        if best.accumulate > 1:
            self._warn_of_batch_norm(best)
        self.settle(best.micro_rows, is_cut=best.accumulate > 1)
        self.memory.keep_only(best.micro)
        self._micros = {key: micros for key, micros in self._micros.items() if key[0] is self.memory.summed}
        for micros in self._micros.values():
            micros.keep_only(best.micro.planned)

    def _warn_of_batch_norm(self, best: Trial) -> None:
        """What was not asked for in so many words must not change a result in silence."""
        if any(isinstance(module, _BatchNorm) and module.training for module in self.memory.model.modules()):
            warnings.warn(
                f"graphopt: accumulate='auto' cuts the batch into {best.accumulate} micro-batches of {best.micro_rows} "
                "rows, and batch norm takes its statistics from each of them; accumulate=1 keeps the batch whole",
                stacklevel=2,
            )

    def _micros_now(self, is_last: bool) -> Micros:
        """Graphs have gradients for what the optimizer held when they were captured."""
        memory = self.memory
        kind, hand_over = self._hand_over(is_last)
        key = memory.summed, memory.view.trained, kind
        if key not in self._micros:
            options = memory.choice, memory.plan, hand_over, memory.forget, self._sizes
            self._micros[key] = Micros(self._module, *options, around=self._around_capture)
        return self._micros[key]


def micro_sizes(rows: int) -> list[int]:
    """Sizes of micro-batch to try for a batch of `rows`, falling: about two an octave, down to one row.

    For 1, 2, 3, 4, 6, 8, 12, ... micro-batches; a number near to one of these that divides the batch
    stands in for it, as a short last micro-batch is a graph of its own.
    """
    numbers = [1, 2]
    while numbers[-1] < rows:
        numbers += [numbers[-1] * 3 // 2, numbers[-1] * 2]
    divisors = [number for number in range(1, rows + 1) if rows % number == 0]
    near = [min(divisors, key=lambda divisor: abs(divisor - wanted)) for wanted in numbers]
    chosen = [n if 4 * abs(n - wanted) <= wanted else wanted for wanted, n in zip(numbers, near, strict=True)]
    return sorted({ceil_div(rows, min(number, rows)) for number in chosen}, reverse=True)


def walk(rows: int, budget_bytes: int, trial: Callable[[int], Trial]) -> Iterator[Trial]:
    """Try ways to cut a batch, largest micro-batches first.

    Sizes that cannot fit by the line through what was tried are passed over, until one fits; those
    passed over just before it are tried then. Smaller ones follow until two on end are no faster than
    the best, or one that recomputes nothing is not: beyond, there is less and less work to save and
    each op does less at a time.
    """
    sizes = micro_sizes(rows)
    tried: dict[int, Trial] = {}
    place = 0
    while place not in tried:
        tried[place] = trial(sizes[place])
        yield tried[place]
        if tried[place].micro:
            break
        if isinstance(tried[place].error, CaptureError):  # so small a batch cannot be; the next larger one may
            del sizes[place:], tried[place]
            place -= 1
        else:
            place = min(_next_place(sizes, place, [tried[i] for i in sorted(tried)], budget_bytes), len(sizes) - 1)
    else:
        return
    before = place - 1
    while before >= 0 and before not in tried:
        tried[before] = trial(sizes[before])
        yield tried[before]
        before = before - 1 if tried[before].micro else -1
    best = min(each.seconds for each in tried.values())
    slower = 0
    for size in sizes[place + 1 :]:
        last = trial(size)
        yield last
        slower = slower + 1 if last.seconds >= best else 0
        best = min(best, last.seconds)
        if not last.micro or (slower and (slower == 2 or last.seconds == last.eager_seconds)):
            return


def none_fits(trials: list[Trial]) -> BudgetError:
    """The error for a batch of which no micro-batch fits: what the least demanding way to cut it needs."""
    least = min(trials, key=lambda trial: trial.minimum_bytes)
    assert isinstance(least.error, BudgetError)
    return BudgetError(
        f"no way to cut the batch of {least.rows} rows fits; micro-batches of {least.micro_rows} need the least, "
        f"{format_bytes(least.minimum_bytes)}.\n{least.error}",
        least.minimum_bytes,
        least.error.drivers,
    )


def _next_place(sizes: list[int], place: int, tried: list[Trial], budget_bytes: int) -> int:
    """The next size that may fit, if bytes grow along a line with the rows; the last one where none may."""
    last = tried[-1]
    if len(tried) > 1 and tried[-2].minimum_bytes > last.minimum_bytes:
        slope = (tried[-2].minimum_bytes - last.minimum_bytes) / (tried[-2].micro_rows - last.micro_rows)
    else:
        slope = max(last.minimum_bytes - last.fixed_bytes, 1) / last.micro_rows
    fitting = last.micro_rows - (last.minimum_bytes - budget_bytes) / slope
    later = [i for i in range(place + 1, len(sizes)) if sizes[i] <= fitting]
    return later[0] if later else max(place + 1, len(sizes) - 1)

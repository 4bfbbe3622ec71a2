"""A model's training step at all sizes of its inputs: what it takes, what of it fits a budget, and at what price."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from graphopt.cost_models.polynomials import Family, Form
from graphopt.plan.graph_forms import GraphForms, runs_by_op

logger = logging.getLogger("graphopt")

#: So far above a size the next one that a capture serves is looked for.
_NEAR = 64

#: Planners are asked at sizes where eager takes less or more by this factor than where they were asked before: within
#: it, schedules planned elsewhere were at most 1.7 points of a step slower on two transformers at 50 % and more of
#: eager's peak; at 2.8 times the size, 14 points at 35 %.
_FACTOR = 2.0

Sizes = Mapping[str, int]


@dataclass(frozen=True)
class AtSize:
    """What the fastest schedule inside of a budget takes: peak bytes, and extra time over eager as a fraction."""

    peak_bytes: int
    overhead: float


class BySize:
    """One captured graph beside what is resident, as closed forms; all bytes are in the budget's own measure."""

    def __init__(self, graph: GraphForms, resident: Form) -> None:
        self.graph, self.resident = graph, resident
        self._known: tuple[int, Family] | None = None
        #: Eager's own peaks at the sizes that planners were asked for.
        self._planned_bytes: list[int] = []
        #: And what they found to be the least, by sizes.
        self._least_bytes: dict[tuple[tuple[str, int], ...], int] = {}

    @property
    def eager(self) -> Form:
        """The peak of the captured order, with nothing recomputed."""
        return self._own_eager + self.resident

    @property
    def minimum(self) -> Form:
        """The peak of the schedule that takes least at the sizes of the example."""
        return self.minimum_at(self.graph.sizes)

    def minimum_at(self, sizes: Sizes) -> Form:
        """The peak, at all sizes, of the schedule that takes least at these; another one may take less elsewhere."""
        self.plan_for(sizes, None)
        return self._least_at(sizes) + self.resident

    def eager_bytes(self, sizes: Sizes) -> int:
        """The peak of the captured order at these sizes."""
        return self._own_eager.at(sizes) + self.resident.at(sizes)

    def minimum_bytes(self, sizes: Sizes) -> int:
        """The least that planners find at these very sizes, as `optimize()` will ask them there."""
        return self._planned_minimum_bytes(sizes) + self.resident.at(sizes)

    def least_known_bytes(self, sizes: Sizes) -> int:
        """The least of the schedules that are known: what is needed at the most."""
        return min(self._family.at(sizes)) + self.resident.at(sizes)

    def within(self, budget_bytes: int, sizes: Sizes) -> AtSize | None:
        """The fastest schedule that fits, eager's where it does; None where none does."""
        self.plan_for(sizes, budget_bytes)
        peaks = np.array(self._family.at(sizes), dtype=object) + self.resident.at(sizes)
        runs = runs_by_op(self.graph.schedules, len(self.graph.graph.problem.ops))
        seconds = runs @ self.graph.seconds(sizes)
        position = self.graph.schedules.index(self.graph.graph.captured_schedule)
        if peaks[position] <= budget_bytes:
            return AtSize(int(peaks[position]), 0.0)
        fitting = [number for number, peak in enumerate(peaks) if peak <= budget_bytes]
        if not fitting:
            return None
        best = min(fitting, key=lambda number: seconds[number])
        ratio = float(seconds[best] / seconds[position]) if seconds[position] else 1.0
        return AtSize(int(peaks[best]), max(ratio - 1, 0.0))

    def most(self, name: str, budget_bytes: int, others: Sizes, *, eager: bool = False) -> int:
        """The largest size of that name that fits; 0 where none does. `eager` asks for that with nothing recomputed.

        By the schedules that are known first. Then planners are asked at what was found, as `optimize()` will ask them,
        and at the next size, until the one fits and the other does not.
        """
        known = Family([self._own_eager]) if eager else self._family
        fits = self._fitting(name, budget_bytes, others, lambda sizes: min(known.at(sizes)))
        low = self._least_served(name, others)
        sizes = (low, self.graph.sizes[name])
        found = self._largest(name, others, fits, next(filter(fits, sizes), 0))
        if not eager:
            asked = self._fitting(name, budget_bytes, others, self._planned_minimum_bytes)
            found = self._agreed(name, others, asked, found) or next(filter(asked, sizes), 0)
        if found and (why := self.graph.refusal({**others, name: found + 1})):
            logger.warning("%s %d fits, and may not be the largest: %s", name, found, why)
        return found

    def plan_for(self, sizes: Sizes, budget_bytes: int | None) -> None:
        """Ask the planners where eager takes more or less by `_FACTOR` than at all sizes where they were asked.

        So they are where nothing that is known fits the budget, or where there is none: what takes least at some sizes
        may be far from it at twice as many.
        """
        self._planned_bytes = self._planned_bytes or [self._own_eager.at(self.graph.sizes)]
        now = self._own_eager.at(sizes)
        is_far = all(max(now, known) >= _FACTOR * min(now, known) for known in self._planned_bytes)
        is_open = budget_bytes is None or self.least_known_bytes(sizes) > budget_bytes
        if is_far or (is_open and now not in self._planned_bytes):
            self._planned_bytes.append(now)
            self._planned_minimum_bytes(sizes)

    def _fitting(
        self, name: str, budget_bytes: int, others: Sizes, least_bytes: Callable[[Sizes], int]
    ) -> Callable[[int], bool]:
        @cache
        def fits(size: int) -> bool:
            sizes = {**others, name: size}
            return not self.graph.refusal(sizes) and least_bytes(sizes) + self.resident.at(sizes) <= budget_bytes

        return fits

    def _planned_minimum_bytes(self, sizes: Sizes) -> int:
        key = tuple(sorted(sizes.items()))
        if key not in self._least_bytes:
            found = Family(list(map(self.graph.peak, self.graph.plan_at(sizes)))).at(sizes)
            self._least_bytes[key] = min(found)
        return self._least_bytes[key]

    def _agreed(self, name: str, others: Sizes, asked: Callable[[int], bool], found: int) -> int:
        """The largest size that fits by what planners find at it, near one that is expected to; 0 where none does."""
        low = self._least_served(name, others)
        if found and not asked(found):
            return self._between(name, others, asked, low, found) if asked(low) else 0
        if not found and not asked(found := low):
            return 0
        above = next((s for s in range(found + 1, found + _NEAR) if not self.graph.refusal({**others, name: s})), 0)
        return self._largest(name, others, asked, above) if above and asked(above) else found

    def _largest(self, name: str, others: Sizes, fits: Callable[[int], bool], low: int) -> int:
        """The largest size that fits, from one that does; 0 where that is 0."""
        if not low:
            return 0
        high = 2 * low
        while fits(high):
            low, high = high, 2 * high
        return self._between(name, others, fits, low, high)

    def _between(self, name: str, others: Sizes, fits: Callable[[int], bool], low: int, high: int) -> int:
        """The largest size that fits, where `low` does and `high` does not."""
        while high - low > 1:
            middle = self._served(name, others, (low + high) // 2, low)
            if middle == low:  # nothing from there to the middle is served
                middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low

    def _least_served(self, name: str, others: Sizes) -> int:
        """The smallest size of that name that the capture serves, up to the example's."""
        most = self.graph.sizes[name]
        sizes = range(self.graph.ranges[name][0], most)
        return next((size for size in sizes if not self.graph.refusal({**others, name: size})), most)

    def _served(self, name: str, others: Sizes, size: int, low: int) -> int:
        """The largest size from `low` to `size` that the capture serves: a network may take multiples of 8 alone."""
        return next((each for each in range(size, low, -1) if not self.graph.refusal({**others, name: each})), low)

    @cached_property
    def _own_eager(self) -> Form:
        return self.graph.peak(self.graph.graph.captured_schedule)

    def _least_at(self, sizes: Sizes) -> Form:
        peaks = self._family.at(sizes)
        return self._family.forms[int(np.argmin(peaks))]

    @property
    def _family(self) -> Family:
        """The peaks of all schedules that are known by now."""
        count = len(self.graph.schedules)
        if self._known is None or self._known[0] != count:
            known = self._known[1].forms if self._known is not None else ()
            new = [self.graph.peak(schedule) for schedule in self.graph.schedules[len(known) :]]
            self._known = count, Family((*known, *new))
        return self._known[1]

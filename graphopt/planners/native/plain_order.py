"""An order of the ops in which less is alive: each op moves to where it helps most, until none does.

What a step costs is its share of the peak to the sixth power, so that high steps count most.
"""

from __future__ import annotations

import numpy as np

from graphopt.planners.native.arrays import Floats, Ints
from graphopt.problem.problem import Problem

#: How far an op is moved at once.
FARTHEST = 200
#: A move has to gain this much, where the highest step of the problem's own order costs 1.
LEAST_GAIN = 1e-6


class Ordering:
    """A permutation of the ops that keeps to dependencies, to the order of pinned ops, and to the two halves."""

    def __init__(self, problem: Problem, order: Ints) -> None:
        self.problem = problem
        ops, producer, count = problem.ops, problem.producer, len(problem.ops)
        self.order: Ints = order.copy()
        self.where: list[int] = np.argsort(order).tolist()
        self.size = [value.bytes for value in problem.values]
        self.inputs = [frozenset(v for v in op.inputs if producer[v] >= 0) for op in ops]
        kept = frozenset(problem.outputs)
        #: What can be gone once an op has run: of what it reads, and bytes that it makes and nobody reads.
        self.lost = [tuple(read - kept) for read in self.inputs]
        self.unread = [sum(self.size[v] for v in op.outputs if v not in kept and not problem.readers[v]) for op in ops]
        self.made = np.array([sum(self.size[v] for v in op.outputs) for op in ops], dtype=np.int64)
        #: Bytes beside those alive before it while an op runs.
        self.own = self.made + np.array([op.workspace_bytes for op in ops], dtype=np.int64)
        #: Ops that keep their order, and the place of each among them.
        self.pinned = [i for i, op in enumerate(ops) if op.pinned or not op.recomputable]
        self.turn = {op: at for at, op in enumerate(self.pinned)}
        #: Bytes that are gone once an op has run, and those alive before each place.
        self.freed = np.array([self._freed(op) for op in range(count)], dtype=np.int64)
        self.before = np.zeros(count, dtype=np.int64)
        self._fill(0, count)
        self.peak = max(1, int((self.before + self.own[self.order]).max()))

    def _last_reader(self, value: int) -> int:
        """The place of the op that reads `value` last; every value asked for has one."""
        where = self.where
        return max([where[r] for r in self.problem.readers[value]])

    def _freed(self, op: int) -> int:
        at = self.where[op]
        return self.unread[op] + sum([self.size[v] for v in self.lost[op] if self._last_reader(v) == at])

    def _fill(self, start: int, stop: int) -> None:
        """Bytes alive before each place from `start` on; those at `start` are known."""
        ops = self.order[start : stop - 1]
        self.before[start + 1 : stop] = self.before[start] + np.cumsum(self.made[ops] - self.freed[ops])

    def cost(self, alive: Ints, op: Ints | int) -> Floats:
        """What steps cost at which ops run while `alive` bytes are there before them."""
        share = (alive + self.own[op]) / self.peak
        cube: Floats = share * share * share
        return cube * cube

    def span(self, op: int) -> tuple[int, int]:
        """The first place to which an op may go, and the one after the last, for one move."""
        where, problem, at = self.where, self.problem, self.where[op]
        first = problem.first_backward
        # The first backward op stays where it is: it stands for what happens between the two halves.
        low, high = (0, first) if op < first else (first + 1, len(where)) if op > first else (first, first + 1)
        turn = self.turn.get(op)
        if turn is not None:
            low = max(low, where[self.pinned[turn - 1]] + 1) if turn else low
            high = min(high, where[self.pinned[turn + 1]]) if turn + 1 < len(self.pinned) else high
        low = max([low, at - FARTHEST + 1, *(where[problem.producer[v]] + 1 for v in self.inputs[op])])
        readers = (where[r] for v in problem.ops[op].outputs for r in problem.readers[v])
        return low, min([high, at + FARTHEST, *readers])

    def best_later(self, op: int) -> tuple[float, int]:
        """The gain of the best later place, and the place."""
        at, stop = self.where[op], self.span(op)[1]
        if stop <= at + 1:
            return 0.0, at
        others = self.order[at + 1 : stop]
        change = self.made[others] - self.freed[others]
        for value in self.lost[op]:
            last = self._last_reader(value)
            if at < last < stop:
                # It no longer dies there: `op` reads it later.
                change[last - at - 1] += self.size[value]
        alive = np.cumsum(np.concatenate([self.before[at : at + 1], change]))
        old = self.cost(self.before[at:stop], self.order[at:stop])
        gains = old[0] + np.cumsum(old[1:] - self.cost(alive[:-1], others)) - self.cost(alive[1:], op)
        best = int(gains.argmax())
        return (float(gains[best]), at + 1 + best) if gains[best] > 0 else (0.0, at)

    def best_earlier(self, op: int) -> tuple[float, int]:
        """The gain of the best earlier place, and the place."""
        at, start = self.where[op], self.span(op)[0]
        if start >= at:
            return 0.0, at
        freed = np.full(at - start, self.freed[op])
        for value in self.lost[op]:
            places = sorted([self.where[r] for r in self.problem.readers[value]])
            if places[-1] == at and len(places) > 1 and places[-2] >= start:
                # Before its other last reader `op` frees it no more.
                freed[: places[-2] - start + 1] -= self.size[value]
        before, others = self.before[start:at], self.order[start:at]
        moved = self.cost(before, others) - self.cost(before + self.made[op] - freed, others)
        gains = self.cost(self.before[at : at + 1], op) + np.cumsum(moved[::-1]) - self.cost(before, op)[::-1]
        best = int(gains.argmax())
        return (float(gains[best]), at - 1 - best) if gains[best] > 0 else (0.0, at)

    def move(self, op: int, place: int) -> None:
        """Put `op` at another place; those between make room."""
        at = self.where[op]
        low, high = min(at, place), max(at, place) + 1
        self.order[low:high] = np.roll(self.order[low:high], -1 if at < place else 1)
        for index, other in enumerate(self.order[low:high].tolist(), low):
            self.where[other] = index
        for other in {op, *(r for v in self.inputs[op] for r in self.problem.readers[v])}:
            self.freed[other] = self._freed(other)
        self._fill(low, high)


def reorder(problem: Problem, order: Ints, movable: Ints, passes: int) -> Ints:
    """Move ops one by one, until no move gains anything or all `movable` ones were looked at `passes` times."""
    ordering = Ordering(problem, order)
    for _ in range(passes):
        moved = False
        for op in movable.tolist():
            gain, place = max(ordering.best_later(op), ordering.best_earlier(op))
            if gain > LEAST_GAIN:
                ordering.move(op, place)
                moved = True
        if not moved:
            break
    return ordering.order

"""An order of the ops in which less is alive: each op moves to where it helps most, until none does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphopt.planners.native import Native, native_for
from graphopt.problem.problem import Problem

#: What a step costs is its share of the peak to this power: high steps count most.
POWER = 6
#: How far an op is moved at once.
FARTHEST = 200
#: A move has to gain this much, where the highest step of the problem's own order costs 1.
LEAST_GAIN = 1e-6


class Ordering:
    """A permutation of the ops that keeps to dependencies, to the order of pinned ops, and to the two halves."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        ops, producer = problem.ops, problem.producer
        self.order = list(range(len(ops)))
        self.where = list(range(len(ops)))
        self.size = [value.bytes for value in problem.values]
        self.inputs = [frozenset(v for v in op.inputs if producer[v] >= 0) for op in ops]
        self.outputs = [frozenset(op.outputs) for op in ops]
        self.made = [sum(self.size[v] for v in op.outputs) for op in ops]
        #: Bytes beside those alive before it while an op runs.
        self.own = [self.made[i] + op.workspace_bytes for i, op in enumerate(ops)]
        self.kept = frozenset(problem.outputs)
        #: What can be gone once an op has run: of what it reads, and bytes that it makes and nobody reads.
        self.lost = [tuple(read - self.kept) for read in self.inputs]
        unread = [[v for v in made - self.kept if not problem.readers[v]] for made in self.outputs]
        self.unread = [sum(self.size[v] for v in made) for made in unread]
        first = problem.first_backward
        # The first backward op stays where it is: it stands for what happens between the two halves.
        self.half = [(i > first) - (i < first) for i in range(len(ops))]
        self.pinned = [op.pinned or not op.recomputable for op in ops]
        self.freed = [self._freed(op) for op in self.order]
        self.before = [0] * len(ops)
        self._fill(0, len(ops))
        self.peak = max(1, self.highest()[0])

    def _freed(self, op: int) -> int:
        """Bytes that are gone once `op` has run."""
        where, readers, size, at = self.where, self.problem.readers, self.size, self.where[op]
        freed = sum([size[v] for v in self.lost[op] if max([where[r] for r in readers[v]]) <= at])
        return freed + self.unread[op]

    def _fill(self, start: int, stop: int) -> None:
        """Bytes alive before each place from `start` on."""
        alive = self.before[start]
        for place in range(start, stop):
            self.before[place] = alive
            op = self.order[place]
            alive += self.made[op] - self.freed[op]

    def highest(self) -> tuple[int, int]:
        """The most bytes that are alive, and the op that runs then."""
        steps = zip(self.before, self.order, strict=True)
        peak, _, op = max((before + self.own[op], -place, op) for place, (before, op) in enumerate(steps))
        return peak, op

    def cost(self, alive: int, op: int) -> float:
        share = (alive + self.own[op]) / self.peak
        return float(share**POWER)

    def may_pass(self, first: int, second: int) -> bool:
        """Whether two neighbours may change places."""
        if self.half[first] != self.half[second] or (self.pinned[first] and self.pinned[second]):
            return False
        return self.outputs[first].isdisjoint(self.inputs[second])

    def dying(self, first: int, second: int) -> list[int]:
        """Values that both read and that die with `second`, the later one."""
        if self.inputs[first].isdisjoint(self.inputs[second]):
            return []
        common = (self.inputs[first] & self.inputs[second]) - self.kept
        where, readers, last = self.where, self.problem.readers, self.where[second]
        return [v for v in common if all(where[r] <= last for r in readers[v])]

    def best_later(self, op: int) -> tuple[float, int]:
        """The gain of the best later place, and the place."""
        at = self.where[op]
        alive = self.before[at]
        total, best, place = 0.0, 0.0, at
        here = self.cost(alive, op)
        for there in range(at + 1, min(len(self.order), at + FARTHEST)):
            other = self.order[there]
            if not self.may_pass(op, other):
                break
            shared = sum([self.size[v] for v in self.dying(op, other)])
            old = here + self.cost(self.before[there], other)
            passed = self.cost(alive, other)
            alive += self.made[other] - self.freed[other] + shared
            here = self.cost(alive, op)
            total += old - here - passed
            if total > best:
                best, place = total, there
        return best, place

    def best_earlier(self, op: int) -> tuple[float, int]:
        """The gain of the best earlier place, and the place."""
        at = self.where[op]
        freed = self.freed[op]
        passed: set[int] = set()
        total, best, place = 0.0, 0.0, at
        here = self.cost(self.before[at], op)
        for there in range(at - 1, max(-1, at - FARTHEST), -1):
            other = self.order[there]
            if not self.may_pass(other, op):
                break
            # What another one that was passed reads too dies there already.
            shared = set(self.dying(other, op)) - passed
            passed |= shared
            freed -= sum(self.size[v] for v in shared)
            alive = self.before[there]
            old = here + self.cost(alive, other)
            here = self.cost(alive, op)
            total += old - here - self.cost(alive + self.made[op] - freed, other)
            if total > best:
                best, place = total, there
        return best, place

    def move(self, op: int, place: int) -> None:
        """Put `op` at another place; those between make room."""
        at = self.where[op]
        del self.order[at]
        self.order.insert(place, op)
        low, high = min(at, place), max(at, place) + 1
        for index in range(low, high):
            self.where[self.order[index]] = index
        for index in range(low, high):
            self.freed[self.order[index]] = self._freed(self.order[index])
        self._fill(low, high)

    def settle_by(self, native: Native, movable: Sequence[int], passes: int) -> None:
        """See `settle`."""
        fixed = [np.array(self.half, dtype=np.int8), np.array(self.pinned, dtype=np.uint8)]
        fixed += [np.array(numbers, dtype=np.int64) for numbers in (self.made, self.own, self.unread)]
        state = [np.array(numbers, dtype=np.int64) for numbers in (self.order, self.where, self.freed, self.before)]
        native.settle(fixed, self.peak, state, np.array(movable, dtype=np.int64), passes)
        self.order, self.where, self.freed, self.before = (numbers.tolist() for numbers in state)


def settle(ordering: Ordering, movable: Sequence[int], passes: int) -> None:
    """Move ops one by one, until no move gains anything or all were looked at so many times."""
    native = native_for(ordering.problem)
    if native is not None:
        ordering.settle_by(native, movable, passes)
        return
    for _ in range(passes):
        moved = False
        for op in movable:
            gain, place = max(ordering.best_later(op), ordering.best_earlier(op))
            if gain > LEAST_GAIN:
                ordering.move(op, place)
                moved = True
        if not moved:
            return


def unrelated(ordering: Ordering, op: int) -> list[int]:
    """Ops of the same half that could run on either side of `op`: neither led to it nor follow from it."""
    problem = ordering.problem
    related, stack = {op}, [op]
    while stack:
        for value in ordering.inputs[stack.pop()]:
            maker = problem.producer[value]
            if maker not in related:
                related.add(maker)
                stack.append(maker)
    after, stack = {op}, [op]
    while stack:
        for value in problem.ops[stack.pop()].outputs:
            new = set(problem.readers[value]) - after
            after |= new
            stack.extend(new)
    related |= after
    return [i for i, half in enumerate(ordering.half) if half == ordering.half[op] and i not in related]


def able_to_pass(ordering: Ordering, op: int) -> list[int]:
    """Those of the unrelated ops that are near enough for one move to the other side of `op`."""
    where = ordering.where
    return [i for i in unrelated(ordering, op) if abs(where[i] - where[op]) < FARTHEST]

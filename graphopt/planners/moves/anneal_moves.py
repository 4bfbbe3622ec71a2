"""Moves of the local search: recomputations dropped, values evicted elsewhere until all fits again.

Ruin and recreate as in Christiaens and Vanden Berghe, Slack Induction by String Removals for Vehicle
Routing Problems (2020): what is removed lies close together, and what comes instead is chosen greedily
with some candidates overlooked at random.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.planners.moves.anneal_track import Track
from graphopt.planners.schedules.replay import held_values
from graphopt.problem.problem import Problem

#: Ops that one eviction may ask to run again, and evictions that one move may make.
LONGEST, MOST = 40, 24
#: Values looked at and priced for one eviction.
LOOKED_AT, PRICED = 48, 10
#: Chance to overlook a candidate, and to forbid the eviction that a move undoes.
BLINK, BANNED = 0.1, 0.7
#: Recomputations dropped besides the first, and how far from it, in steps.
MOST_DROPPED, WIDEST = 6, 64


@dataclass(frozen=True)
class _Eviction:
    value: int
    stop: int
    again: tuple[int, ...]
    seconds: float


class Search:
    """A track under a budget, and moves on it that can be undone."""

    def __init__(self, problem: Problem, schedule: Sequence[int], budget_bytes: int, rng: random.Random) -> None:
        self.problem, self.budget, self.rng = problem, budget_bytes, rng
        self.track = track = Track(problem, schedule)
        held = held_values(problem)
        self.repeatable = [op.recomputable and not held.intersection(op.outputs) for op in problem.ops]
        self.cost = [op.seconds for op in problem.ops]
        #: First runs never move: a label's stage is the number of those before it.
        self.first = [label for label in track.labels if track.runs[track.op_at[label]][0] == label]
        self._at_stage: dict[int, list[int]] = {}
        self._spans = self._lives()
        self.log: list[tuple[int, int]] = []
        #: Labels of recomputations, and the place of each in that list.
        self.again: list[int] = []
        self.place: dict[int, int] = {}
        for label in track.labels:
            if track.runs[track.op_at[label]][0] != label:
                self._enlist(label)

    def _lives(self) -> list[tuple[int, int, int]]:
        """Values that may go, the cheapest per byte first, with the first and last stage at which each can be alive."""
        problem, track = self.problem, self.track
        stage = {track.op_at[label]: at for at, label in enumerate(self.first)}
        lives = []
        for value, maker in enumerate(problem.producer):
            if maker >= 0 and self.repeatable[maker] and problem.values[value].bytes:
                last = max((stage[r] for r in problem.readers[value]), default=-1)
                last = len(self.first) if value in problem.outputs else last
                lives.append((value, stage[maker] + 1, last))
        return sorted(lives, key=lambda life: (self.cost[problem.producer[life[0]]] / track.size[life[0]], life[0]))

    def alive_at(self, label: int) -> list[int]:
        """Values that may be alive at a label and gone from it, the cheapest per byte first."""
        stage = bisect_left(self.first, label)
        if stage not in self._at_stage:
            self._at_stage[stage] = [v for v, begin, end in self._spans if begin <= stage <= end]
        return self._at_stage[stage]

    def _enlist(self, label: int) -> None:
        self.place[label] = len(self.again)
        self.again.append(label)

    def _strike(self, label: int) -> None:
        at, last = self.place.pop(label), self.again.pop()
        if last != label:
            self.again[at] = last
            self.place[last] = at

    def insert(self, label: int, op: int) -> None:
        self.track.insert(label, op)
        self._enlist(label)
        self.log.append((label, -1))

    def delete(self, label: int) -> None:
        op = self.track.op_at[label]
        self.track.delete(label)
        self._strike(label)
        self.log.append((label, op))

    def undo(self) -> None:
        """Back to where the log began."""
        for label, op in reversed(self.log):
            if op < 0:
                self.track.delete(label)
                self._strike(label)
            else:
                self.track.insert(label, op)
                self._enlist(label)
        self.log.clear()

    def drop(self, label: int) -> None:
        """Delete a recomputation and those that served only it."""
        stack = [label]
        track, producer = self.track, self.problem.producer
        while stack:
            label = stack.pop()
            if label not in self.place:
                continue
            op = track.op_at[label]
            self.delete(label)
            for value in track.inputs[op]:
                runs = track.runs[producer[value]]
                source = runs[bisect_left(runs, label) - 1]
                if source != runs[0] and not track.serves(source):
                    stack.append(source)

    def try_move(self, temperature: float) -> bool:
        """Drop some recomputations that lie close together, evict until all fits; True where that is taken.

        Taken is what is faster, or slower by a random number of seconds of the mean `temperature`.
        """
        rng, track = self.rng, self.track
        most_seconds = track.seconds - temperature * math.log(1 - rng.random())
        first = self.again[int(rng.random() * len(self.again))]
        banned = set(self.problem.ops[track.op_at[first]].outputs) if rng.random() < BANNED else set()
        for label in self._neighbours(first):
            if label in self.place:
                self.drop(label)
        taken = self.recreate(most_seconds, banned)
        if taken:
            self.log.clear()
        else:
            self.undo()
        return taken

    def _neighbours(self, first: int) -> list[int]:
        """A recomputation and some of those around it, few more often than many."""
        rng, labels = self.rng, self.track.labels
        rank, width = self.track.rank(first), WIDEST * rng.random() ** 2
        places = [rank + int(rng.gauss(0, 1) * width) for _ in range(int(MOST_DROPPED * rng.random() ** 3))]
        return [first, *(labels[place] for place in places if 0 <= place < len(labels))]

    def recreate(self, most_seconds: float, banned: set[int]) -> bool:
        """Evict until the budget holds; False where that fails or takes too long."""
        track = self.track
        for _ in range(MOST):
            memory = track.memory
            rank = int(memory.argmax())
            excess = int(memory[rank]) - self.budget
            if excess <= 0:
                return track.seconds < most_seconds
            found = self.choose(rank, excess, most_seconds - track.seconds, banned)
            if found is None or not self.evict(found):
                return False
        return False

    def evict(self, found: _Eviction) -> bool:
        labels = self.track.room_before(found.stop, len(found.again))
        if labels is None:
            return False
        for label, op in zip(labels, found.again, strict=True):
            self.insert(label, op)
        return True

    def choose(self, rank: int, excess: int, allowed: float, banned: set[int]) -> _Eviction | None:
        """An eviction that frees bytes at `rank`: cheap for the bytes over budget that it covers."""
        track, rng = self.track, self.rng
        producer, cost, size = self.problem.producer, self.cost, track.size
        label = track.labels[rank] if rank < track.count else track.end
        over = np.cumsum(track.memory > self.budget).tolist()
        found: list[tuple[float, int, int, int, float]] = []
        for value in self.alive_at(label):
            maker = producer[value]
            if value in banned or cost[maker] > allowed or rng.random() < BLINK:
                continue
            start, stop = self.gap(value, label)
            if stop < 0:
                continue
            covered = over[track.rank(stop) - 1] - over[track.rank(start)]
            gain = min(size[value], excess) * covered
            found.append((cost[maker] / gain, value, start, stop, gain))
            if len(found) >= LOOKED_AT:
                break
        found.sort()
        best: _Eviction | None = None
        best_rate = math.inf
        for rate, value, start, stop, gain in found[:PRICED]:
            if rate >= best_rate:
                break
            priced = self.price(value, start, stop, min(allowed, best_rate * gain))
            if priced is not None and priced.seconds / gain < best_rate:
                best, best_rate = priced, priced.seconds / gain
        return best

    def gap(self, value: int, label: int) -> tuple[int, int]:
        """The last read (or birth) before `label` and the first one after it; a negative one if not in between."""
        track = self.track
        runs, reads = track.runs[self.problem.producer[value]], track.reads[value]
        place = bisect_left(reads, label)
        if place == len(reads) or reads[place] == label:
            return -1, -1
        at = bisect_left(runs, label)
        if not at or (at < len(runs) and runs[at] < reads[place]):
            return -1, -1
        born = runs[at - 1]
        return (reads[place - 1] if place and reads[place - 1] > born else born), reads[place]

    def price(self, value: int, start: int, stop: int, allowed: float) -> _Eviction | None:
        """What must run right before `stop` for `value` to be there; None if it takes more than allowed."""
        track, producer = self.track, self.problem.producer
        again: set[int] = set()
        seconds = 0.0
        stack = [producer[value]]
        while stack:
            maker = stack.pop()
            if maker in again:
                continue
            if not self.repeatable[maker] or len(again) > LONGEST:
                return None
            again.add(maker)
            seconds += self.cost[maker]
            if seconds > allowed:
                return None
            for needed in track.inputs[maker]:
                source = producer[needed]
                if source in again:
                    continue
                _, before, last = track.life(needed, stop)
                if last < stop and not self.fits(needed, before, value, start, stop):
                    stack.append(source)
        return _Eviction(value, stop, tuple(sorted(again)), seconds)

    def fits(self, needed: int, before: int, value: int, start: int, stop: int) -> bool:
        """Whether `needed` can stay until `stop` in the room that evicting `value` makes."""
        track = self.track
        size, freed = track.size[needed], track.size[value]
        if not size:
            return True
        memory, low, high, stop_rank = track.memory, track.rank(before) + 1, track.rank(start) + 1, track.rank(stop)
        if low < high and int(memory[low:high].max()) + size > self.budget:
            return False
        inside = memory[max(low, high) : stop_rank]
        return size < freed and (
            size * 4 <= freed or not len(inside) or int(inside.max()) - freed + size <= self.budget
        )

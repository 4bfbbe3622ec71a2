"""A schedule that can lose recomputations one by one, with its memory profile kept exact."""

from __future__ import annotations

from collections.abc import Sequence

from graphopt.problem import Problem
from graphopt.schedule import simulate


class Timeline:
    """Steps of a schedule; `drop` deletes a recomputation and keeps its values alive instead.

    A deleted step stays in the profile as a position at which only the values that live across it
    count: never more than at its neighbours, so `memory.max()` is the simulator's peak.
    """

    def __init__(self, problem: Problem, schedule: Sequence[int]) -> None:
        self.problem = problem
        self.steps = list(schedule)
        self.memory = simulate(problem, schedule).live_bytes.copy()
        self.seconds = sum(problem.ops[i].seconds for i in schedule)
        self.size = [value.bytes for value in problem.values]
        #: The step before, and after, that runs the same op; -1 where there is none.
        self.previous = [-1] * len(self.steps)
        self.next = [-1] * len(self.steps)
        #: For each step and input the step that produced it; for each step and output its readers.
        self.sources: list[dict[int, int]] = []
        self.readers: list[dict[int, list[int]]] = []
        #: Number of reads of all of a step's outputs.
        self.reads = [0] * len(self.steps)
        self._link()

    def _link(self) -> None:
        end = len(self.steps)
        made: dict[int, int] = {}
        last_run: dict[int, int] = {}
        for step, op_id in enumerate(self.steps):
            op = self.problem.ops[op_id]
            self.sources.append({v: made[v] for v in op.inputs if v in made})
            for value, source in self.sources[-1].items():
                self.readers[source][value].append(step)
                self.reads[source] += 1
            self.readers.append({v: [] for v in op.outputs})
            made.update((v, step) for v in op.outputs)
            if op_id in last_run:
                self.previous[step] = last_run[op_id]
                self.next[last_run[op_id]] = step
            last_run[op_id] = step
        for value in self.problem.outputs:
            if value in made:
                self.readers[made[value]][value].append(end)
                self.reads[made[value]] += 1

    def gap(self, step: int) -> tuple[int, int, int]:
        """First and last-but-one position, and bytes, of what dropping `step` keeps alive."""
        before = self.readers[self.previous[step]]
        first, size = step, 0
        for value, readers in self.readers[step].items():
            if readers:
                size += self.size[value]
                first = min(first, (before[value][-1] if before[value] else self.previous[step]) + 1)
        return first, step, size

    def saving(self, step: int, limit: int = 400) -> float:
        """Seconds that dropping `step` saves: its own and those of steps that served only it."""
        ops, steps = self.problem.ops, self.steps
        total = ops[steps[step]].seconds
        left = {self.previous[step]: 1 << 60}
        stack = [step]
        for gone in stack:
            for source in self.sources[gone].values():
                if self.previous[source] >= 0:
                    left[source] = left.get(source, self.reads[source]) - 1
                    if not left[source] and len(stack) < limit:
                        total += ops[steps[source]].seconds
                        stack.append(source)
        return total

    def drop(self, step: int) -> tuple[list[int], set[int]]:
        """Delete `step` and whatever served only it: the steps that went, those whose readers changed."""
        gone, changed = [step], {self.previous[step]}
        self._keep_alive(step)
        for current in gone:
            self._unlink(current)
            for value, source in self.sources[current].items():
                self._lose_reader(source, value, current)
                changed.add(source)
                if not self.reads[source] and self.previous[source] >= 0:
                    gone.append(source)
        return gone, changed.difference(gone)

    def _keep_alive(self, step: int) -> None:
        keeper = self.previous[step]
        for value, readers in self.readers[step].items():
            kept = self.readers[keeper][value]
            if readers:
                self.memory[(kept[-1] if kept else keeper) + 1 : step] += self.size[value]
                kept.extend(readers)
                for reader in readers:
                    if reader < len(self.steps):
                        self.sources[reader][value] = keeper
            else:
                self.memory[step] -= self.size[value]
        self.reads[keeper] += self.reads[step]
        self.reads[step] = 0
        self.readers[step] = {}

    def _unlink(self, step: int) -> None:
        op = self.problem.ops[self.steps[step]]
        self.memory[step] -= op.workspace_bytes + sum(self.size[v] for v in self.readers[step])
        self.seconds -= op.seconds
        before, after = self.previous[step], self.next[step]
        self.next[before] = after
        if after >= 0:
            self.previous[after] = before

    def _lose_reader(self, source: int, value: int, reader: int) -> None:
        readers = self.readers[source][value]
        if readers[-1] == reader:
            readers.pop()
            self.memory[(readers[-1] if readers else source) + 1 : reader + 1] -= self.size[value]
        else:
            readers.remove(reader)
        self.reads[source] -= 1

"""Maximum flow, and the minimum cut, on a network whose capacities change (Dinic, 1970)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from graphopt.planners.native.arrays import Ints
from graphopt.planners.native.plain_flow import SINK, SOURCE
from graphopt.planners.study.study import Study

__all__ = ["SINK", "SOURCE", "Network"]


class Network:
    """Nodes by number; edges with whole capacities, `e ^ 1` the reverse of edge `e`."""

    def __init__(self, study: Study, nodes: int) -> None:
        self._min_cut = study.loops.min_cut
        self.out: list[list[int]] = [[] for _ in range(nodes)]
        self.to: list[int] = []
        self._capacities: list[int] = []

    def edge(self, tail: int, head: int, capacity: int) -> int:
        """A new edge; its number."""
        number = len(self.to)
        self.to += [head, tail]
        self._capacities += [capacity, 0]
        self.out[tail].append(number)
        self.out[head].append(number + 1)
        return number

    @cached_property
    def capacity(self) -> Ints:
        """Of each edge, once all are there."""
        return np.array(self._capacities, dtype=np.int64)

    @cached_property
    def room(self) -> Ints:
        """What can still flow along each edge."""
        room: Ints = self.capacity.copy()
        return room

    @cached_property
    def _arrays(self) -> tuple[Ints, Ints, Ints]:
        """Where each node's edges begin, the edges, and their heads."""
        at = np.cumsum([0, *map(len, self.out)])
        return at, np.array([edge for edges in self.out for edge in edges], dtype=np.int64), np.array(self.to)

    def price(self, edges: Ints, capacities: Ints) -> None:
        """Give edges new capacities. Where none falls, the flow that there is stays."""
        change = capacities - self.capacity[edges]
        self.room[edges] += change
        self.capacity[edges] = capacities
        if (change < 0).any():
            self.room = self.capacity.copy()

    def source_side(self) -> Sequence[bool]:
        """Whether each node is on the source's side of the minimum cut that is nearest to the source."""
        return self._min_cut(*self._arrays, self.room)

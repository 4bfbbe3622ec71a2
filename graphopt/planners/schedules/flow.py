"""Maximum flow, and the minimum cut, on a network whose capacities change (Dinic, 1970)."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from graphopt.planners.native.calls import cut
from graphopt.planners.schedules.layout import Ints

SOURCE, SINK = 0, 1


class Network:
    """Nodes by number; edges with whole capacities, `e ^ 1` the reverse of edge `e`."""

    def __init__(self, nodes: int) -> None:
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

    def source_side(self) -> list[bool]:
        """Whether each node is on the source's side of the minimum cut that is nearest to the source."""
        reached = cut(*self._arrays, self.room)
        return self._source_side() if reached is None else reached

    def _source_side(self) -> list[bool]:
        room: list[int] = self.room.tolist()
        while True:
            steps = self._steps_to_sink(room)
            if steps[SOURCE] < 0:
                self.room = np.array(room, dtype=np.int64)
                return self._reached(room)
            self._block(steps, room)

    def _steps_to_sink(self, room: list[int]) -> list[int]:
        """Each node's distance to the sink along edges with room, as far as the source is; -1 beyond."""
        out, to = self.out, self.to
        steps = [-1] * len(out)
        steps[SINK] = 0
        queue = [SINK]
        for node in queue:
            if node == SOURCE:
                break
            farther = steps[node] + 1
            for edge in out[node]:
                if steps[to[edge]] < 0 and room[edge ^ 1]:
                    steps[to[edge]] = farther
                    queue.append(to[edge])
        return steps

    def _reached(self, room: list[int]) -> list[bool]:
        """Whether each node can be reached from the source along edges with room."""
        out, to = self.out, self.to
        reached = [False] * len(out)
        reached[SOURCE] = True
        queue = [SOURCE]
        for node in queue:
            for edge in out[node]:
                if not reached[to[edge]] and room[edge]:
                    reached[to[edge]] = True
                    queue.append(to[edge])
        return reached

    def _block(self, steps: list[int], room: list[int]) -> None:
        """Fill shortest ways until there is none left: walk on where there is room, else back."""
        out, to = self.out, self.to
        turn = [0] * len(out)
        path: list[int] = []
        node = SOURCE
        while True:
            if node == SINK:
                _push(path, room)
                node = to[path[-1]] if path else SOURCE
                continue
            edges, at, closer = out[node], turn[node], steps[node] - 1
            while at < len(edges) and not (steps[to[edges[at]]] == closer and room[edges[at]]):
                at += 1
            turn[node] = at
            if at < len(edges):
                path.append(edges[at])
                node = to[edges[at]]
            elif path:
                steps[node] = -1
                node = to[path.pop() ^ 1]
            else:
                return


def _push(path: list[int], room: list[int]) -> None:
    """Send along `path` what it can carry, and cut the path off before the first full edge."""
    flow = min([room[edge] for edge in path])
    for edge in path:
        room[edge] -= flow
        room[edge ^ 1] += flow
    full = next(place for place, edge in enumerate(path) if not room[edge])
    del path[full:]

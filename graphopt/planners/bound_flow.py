"""Maximum flow by Dinic's blocking flows (1970), in plain lists: for networks of some thousand arcs."""

from __future__ import annotations


class Network:
    """Arcs between nodes `0 … nodes - 1`; arc `a` and `a ^ 1` are each other's reverse."""

    def __init__(self, nodes: int) -> None:
        self.arcs_of: list[list[int]] = [[] for _ in range(nodes)]
        self.head: list[int] = []
        #: What may still flow through each arc.
        self.left: list[float] = []
        self.value = 0.0

    def add(self, tail: int, head: int, capacity: float) -> int:
        """A new arc; returns its number."""
        arc = len(self.head)
        self.arcs_of[tail].append(arc)
        self.arcs_of[head].append(arc + 1)
        self.head += (head, tail)
        self.left += (capacity, 0.0)
        return arc

    def maximize(self, source: int, sink: int, least: float) -> list[int]:
        """Add to the flow until no path has more than `least` left.

        Returns for each node its distance from the source over arcs with something left; -1 where
        there is no way, so that the nodes with a distance are one side of a minimum cut.
        """
        while True:
            level = self._levels(source, least)
            if level[sink] < 0:
                return level
            self.value += self._block(source, sink, level, least)

    def _levels(self, source: int, least: float) -> list[int]:
        head, left, arcs_of = self.head, self.left, self.arcs_of
        level = [-1] * len(arcs_of)
        level[source] = 0
        queue = [source]
        for node in queue:
            for arc in arcs_of[node]:
                if left[arc] > least and level[head[arc]] < 0:
                    level[head[arc]] = level[node] + 1
                    queue.append(head[arc])
        return level

    def _block(self, source: int, sink: int, level: list[int], least: float) -> float:
        """Push along shortest paths until each has a full arc; returns how much."""
        head, left, arcs_of = self.head, self.left, self.arcs_of
        turn = [0] * len(arcs_of)
        path: list[int] = []
        node, pushed = source, 0.0
        while True:
            if node == sink:
                pushed += self._push(path, least)
                node = head[path[-1]] if path else source
            arcs, at, wanted = arcs_of[node], turn[node], level[node] + 1
            while at < len(arcs) and not (left[arcs[at]] > least and level[head[arcs[at]]] == wanted):
                at += 1
            turn[node] = at
            if at < len(arcs):
                path.append(arcs[at])
                node = head[arcs[at]]
            elif path:
                node = head[path.pop() ^ 1]
                turn[node] += 1
            else:
                return pushed

    def _push(self, path: list[int], least: float) -> float:
        """Fill `path`, and cut it off before the first arc that is full now."""
        left = self.left
        amount = min([left[arc] for arc in path])
        full = len(path)
        for place in range(len(path) - 1, -1, -1):
            arc = path[place]
            left[arc] -= amount
            left[arc ^ 1] += amount
            if left[arc] <= least:
                full = place
        del path[full:]
        return amount

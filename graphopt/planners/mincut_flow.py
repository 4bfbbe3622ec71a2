"""Maximum flow, and the minimum cut, on a network whose capacities change (Dinic, 1970)."""

from __future__ import annotations

SOURCE, SINK = 0, 1


class Network:
    """Nodes by number; edges with whole capacities, `e ^ 1` the reverse of edge `e`."""

    def __init__(self, nodes: int) -> None:
        self.out: list[list[int]] = [[] for _ in range(nodes)]
        self.to: list[int] = []
        self.capacity: list[int] = []
        #: What can still flow along each edge.
        self.room: list[int] = []

    def edge(self, tail: int, head: int, capacity: int) -> int:
        """A new edge; its number."""
        number = len(self.to)
        self.to += [head, tail]
        self.capacity += [capacity, 0]
        self.room += [capacity, 0]
        self.out[tail].append(number)
        self.out[head].append(number + 1)
        return number

    def price(self, capacities: dict[int, int]) -> None:
        """Give edges new capacities. Where none falls, the flow that there is stays."""
        capacity, room = self.capacity, self.room
        falls = any(new < capacity[edge] for edge, new in capacities.items())
        for edge, new in capacities.items():
            room[edge] += new - capacity[edge]
            capacity[edge] = new
        if falls:
            self.room = capacity.copy()

    def source_side(self) -> list[bool]:
        """Whether each node is on the source's side of the minimum cut that is nearest to the source."""
        while True:
            steps = self._steps_to_sink()
            if steps[SOURCE] < 0:
                return self._reached()
            self._block(steps)

    def _steps_to_sink(self) -> list[int]:
        """Each node's distance to the sink along edges with room, as far as the source is; -1 beyond."""
        out, to, room = self.out, self.to, self.room
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

    def _reached(self) -> list[bool]:
        """Whether each node can be reached from the source along edges with room."""
        out, to, room = self.out, self.to, self.room
        reached = [False] * len(out)
        reached[SOURCE] = True
        queue = [SOURCE]
        for node in queue:
            for edge in out[node]:
                if not reached[to[edge]] and room[edge]:
                    reached[to[edge]] = True
                    queue.append(to[edge])
        return reached

    def _block(self, steps: list[int]) -> None:
        """Fill shortest ways until there is none left: walk on where there is room, else back."""
        out, to, room = self.out, self.to, self.room
        turn = [0] * len(out)
        path: list[int] = []
        node = SOURCE
        while True:
            if node == SINK:
                self._push(path)
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

    def _push(self, path: list[int]) -> None:
        """Send along `path` what it can carry, and cut the path off before the first full edge."""
        room = self.room
        flow = min([room[edge] for edge in path])
        for edge in path:
            room[edge] -= flow
            room[edge ^ 1] += flow
        full = next(place for place, edge in enumerate(path) if not room[edge])
        del path[full:]

"""Maximum flow by shortest ways (Dinic, 1970), and the minimum cut nearest to the source."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from graphopt.planners.native.arrays import Ints

SOURCE, SINK = 0, 1


def min_cut(out_at: Ints, out: Ints, to: Ints, room: Ints) -> list[bool]:
    """See `loops.Loops.min_cut`."""
    at, edges, head, left = out_at.tolist(), out.tolist(), to.tolist(), room.tolist()
    ways = [edges[first:last] for first, last in itertools.pairwise(at)]
    while (steps := _distances(SINK, ways, head, lambda edge: left[edge ^ 1]))[SOURCE] >= 0:
        _block(steps, ways, head, left)
    room[:] = left
    return [distance >= 0 for distance in _distances(SOURCE, ways, head, lambda edge: left[edge])]


def _distances(start: int, ways: list[list[int]], head: list[int], is_open: Callable[[int], int]) -> list[int]:
    """Each node's distance from `start` along edges that are open; -1 where it cannot be reached."""
    steps = [-1] * len(ways)
    steps[start] = 0
    queue = [start]
    for node in queue:
        for edge in ways[node]:
            if steps[head[edge]] < 0 and is_open(edge):
                steps[head[edge]] = steps[node] + 1
                queue.append(head[edge])
    return steps


def _block(steps: list[int], ways: list[list[int]], head: list[int], left: list[int]) -> None:
    """Fill shortest ways until there is none left: walk on where there is room, else back."""
    turn = [0] * len(ways)
    path: list[int] = []
    node = SOURCE
    while True:
        if node == SINK:
            _push(path, left)
            node = head[path[-1]] if path else SOURCE
            continue
        edges, at, closer = ways[node], turn[node], steps[node] - 1
        while at < len(edges) and not (steps[head[edges[at]]] == closer and left[edges[at]]):
            at += 1
        turn[node] = at
        if at < len(edges):
            path.append(edges[at])
            node = head[edges[at]]
        elif path:
            steps[node] = -1
            node = head[path.pop() ^ 1]
        else:
            return


def _push(path: list[int], left: list[int]) -> None:
    """Send along `path` what it can carry, and cut the path off before the first full edge."""
    flow = min(left[edge] for edge in path)
    for edge in path:
        left[edge] -= flow
        left[edge ^ 1] += flow
    full = next(place for place, edge in enumerate(path) if not left[edge])
    del path[full:]

"""Random layered graphs, the synthetic problems of the literature on ordering and recomputation.

After appendix A of Gagrani et al., "Neural Topological Ordering for Computation Graphs" (NeurIPS
2022), which Moccasin (ICML 2023) plans too: one source, layers of random width, one sink; edges mostly
from a layer to the next one and some that skip layers; a random order; costs uniform, sizes from a
mixture of normal distributions. Shares and means are read off the published instances of 100 to 1,000
nodes.
"""

from __future__ import annotations

import itertools
import math
import random

from graphopt.problem.problem import Op, Problem, Value, check_problem

WIDTH = 1.3
"""The widest layer, in square roots of the number of nodes."""
NEXT_SHARE, SKIP_SHARE = 0.25, 0.16
"""Share of all pairs of neighbouring layers that are edges; edges that skip layers, as a share of those that do not."""
SIZES = ((0.45, 700, 200), (0.35, 1800, 500), (0.2, 4800, 900))
"""Weight, mean and standard deviation of the parts of the mixture of sizes."""


def layered_graph(nodes: int, seed: int) -> Problem:
    """A problem of `nodes` ops, each with one output; the same for the same arguments in every process."""
    rng = random.Random(seed)
    layers = _layers(nodes, rng)
    reads: list[set[int]] = [set() for _ in range(nodes)]
    for above, below in itertools.pairwise(layers):
        for node in below:
            reads[node] = {maker for maker in above if rng.random() < NEXT_SHARE} or {rng.choice(above)}
        for maker in above:
            if not any(maker in reads[node] for node in below):
                reads[rng.choice(below)].add(maker)
    for _ in range(int(SKIP_SHARE * sum(map(len, reads)))):
        first = rng.randrange(max(len(layers) - 3, 1))
        last = min(first + 2 + int(rng.expovariate(0.2)), len(layers) - 2)
        reads[rng.choice(layers[last])].add(rng.choice(layers[first]))
    order = _random_order(reads, rng)
    place = {node: i for i, node in enumerate(order)}
    inputs = [tuple(sorted(place[maker] for maker in reads[node])) for node in order]
    seconds = [0.0, *(float(rng.randrange(1000)) for _ in range(nodes - 2)), 0.0]
    ops = [Op(str(order[i]), seconds[i], 0, inputs[i], (i,)) for i in range(nodes)]
    return check_problem(Problem(tuple(Value(_size(rng)) for _ in range(nodes)), tuple(ops), ()))


def _random_order(reads: list[set[int]], rng: random.Random) -> list[int]:
    """The nodes, each at random among those whose inputs are there."""
    waiting = [len(makers) for makers in reads]
    readers: list[list[int]] = [[] for _ in reads]
    for node, makers in enumerate(reads):
        for maker in makers:
            readers[maker].append(node)
    ready, order = [node for node, count in enumerate(waiting) if not count], []
    while ready:
        node = ready.pop(rng.randrange(len(ready)))
        order.append(node)
        for reader in readers[node]:
            waiting[reader] -= 1
            if not waiting[reader]:
                ready.append(reader)
    return order


def _layers(nodes: int, rng: random.Random) -> list[list[int]]:
    """Node ids by layer: the source, layers of random width, the sink."""
    widest = max(round(WIDTH * math.sqrt(nodes)), 2)
    ends, first = [1], 1
    while first < nodes - 1:
        first = min(first + rng.randint(1, widest), nodes - 1)
        ends.append(first)
    return [list(range(a, b)) for a, b in zip([0, *ends], [*ends, nodes], strict=True)]


def _size(rng: random.Random) -> int:
    mean, deviation = rng.choices([part[1:] for part in SIZES], [part[0] for part in SIZES])[0]
    return 10 * max(round(rng.gauss(mean, deviation) / 10), 1)

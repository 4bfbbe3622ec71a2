"""Which values may be moved out of memory, and what fetching them is taken to cost."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch._ops import OpOverload

from graphopt.graph.captured_graph import CapturedGraph
from graphopt.kernels.offload.link import DepotLink

#: What is smaller stays: a transfer then takes longer to begin than to run, on any link.
LEAST_BYTES = 2**15
#: Links whose speeds differ by less than this factor's root are planned as one.
_STEP = 1.5


def fetch_seconds(graph: CapturedGraph, link: DepotLink, share: float) -> dict[int, float]:
    """The ops of the forward whose outputs may be moved, each with what fetching them again is taken to cost.

    A transfer runs beside what computes: `share` of its time is counted. What is made again in less time is not
    moved, nor what is written in place, returned, or saved for another backward.
    """
    again, about = _seconds_to_make_again(graph), _rounded(link)
    found: dict[int, float] = {}
    for number, size_bytes in _movable(graph):
        op = graph.step.ops[number]
        seconds = share * about.read_seconds(size_bytes) + 4 * about.host_seconds
        if op.random or not op.recomputable or again[number] > seconds:
            found[number] = seconds
    return found


def movable_bytes(graph: CapturedGraph) -> int:
    """All that may be moved, if only the link is fast enough."""
    return sum(size_bytes for _, size_bytes in _movable(graph))


def _movable(graph: CapturedGraph) -> Iterator[tuple[int, int]]:
    """Ops of the forward, and the bytes of their outputs, that may be moved."""
    step, problem = graph.step, graph.problem
    stay = set(problem.outputs) | _in_written_ops(graph)
    kept = graph.whole.kept if graph.whole is not None else frozenset[str]()
    for number, op in enumerate(step.ops[: step.boundary]):
        size_bytes = sum(problem.values[value].bytes for value in op.outputs)
        if op.node is None or size_bytes < LEAST_BYTES or not stay.isdisjoint(op.outputs):
            continue
        if kept and {op.node.name, *(user.name for user in op.node.users)} & kept:
            continue
        if any(reader > step.boundary for value in op.outputs for reader in problem.readers[value]):
            yield number, size_bytes


def _rounded(link: DepotLink) -> DepotLink:
    """A link that is measured again as nearly the same gives the same problem, whose curve is then known."""
    rates = link.write_bytes_per_second, link.read_bytes_per_second
    times = max(link.call_seconds, 1e-9), max(link.host_seconds, 1e-9)
    return DepotLink(*(_STEP ** round(math.log(each, _STEP)) for each in (*rates, *times)))


def _in_written_ops(graph: CapturedGraph) -> set[int]:
    """Values that an op writes, or reads beside what it writes."""
    nodes = (op.node for op in graph.step.ops)
    writing = (n for n in nodes if n is not None and isinstance(n.target, OpOverload) and n.target._schema.is_mutable)
    home = graph.step.home
    return {home[source] for node in writing for source in node.all_input_nodes if source in home}


def _seconds_to_make_again(graph: CapturedGraph) -> list[float]:
    """Of each op of the forward with those in front of it, up to what the backward reads, which may be there."""
    problem, boundary = graph.problem, graph.step.boundary
    seconds: list[float] = []
    for op in problem.ops[:boundary]:
        missing = (v for v in op.inputs if problem.producer[v] >= 0 and max(problem.readers[v]) < boundary)
        seconds.append(op.seconds + sum(seconds[problem.producer[value]] for value in missing))
    return seconds

"""What a step sends to other ranks, for its report."""

from __future__ import annotations

from collections.abc import Sequence

from graphopt.base.units import format_bytes
from graphopt.compression.choose import Auto
from graphopt.compression.methods import Compression
from graphopt.passes.joint.compress import sent_bytes
from graphopt.passes.joint.sharding.travelling import gathered_bytes, scattered_bytes
from graphopt.step.micro_batches.micro_graph import Micro
from graphopt.step.ranks.exchange import Exchange
from graphopt.step.sharding.share_out import Shared


def sent(
    micros: Sequence[Micro],
    exchange: Exchange | None,
    sharded: Shared | None,
    compress: Compression | Auto | None,
) -> tuple[int, int, tuple[str, ...]]:
    """How many ranks there are, the bytes that each sends in a step of these micro-batches, and lines that say how."""
    if exchange is None:
        return 1, 0, (f"{compress}: no effect in a single process",) * bool(compress)
    world, steps = exchange.ranks.world, [micro.graph.captured.step for micro in micros]
    if sharded is None:
        graphs, over = [step.graph_module.graph for step in steps], exchange.summing
        total_bytes = sum(sent_bytes(graph, over.world) for graph in graphs) if over is not None else 0
        placed: tuple[str, ...] = ()
        if exchange.parallel is not None:
            placed = (f"parameters: {exchange.parallel.spelled}; what layers send is not counted",)
        return world, total_bytes, (*placed, *exchange.lines())
    gathered, others = _gathered_bytes(micros, sharded), (sharded.ranks.world - 1) / sharded.ranks.world
    if sharded.how.scatters:
        summed = sum(map(scattered_bytes, steps)) * others
    else:
        summed = sum(sent_bytes(step.graph_module.graph, world) for step in steps)
    lines = (
        f"{_shared(sharded)}: {sharded.placed.spelled}",
        f"gathered: {format_bytes(gathered)} in a step; all parameters are {format_bytes(sharded.whole_bytes)}",
        *(exchange.lines() if compress is not None or not sharded.how.scatters else ()),
    )
    return world, int(gathered * others + summed), lines


def _gathered_bytes(micros: Sequence[Micro], sharded: Shared) -> int:
    """What a step gathers: parameters where they are read, or those that were updated, behind the update."""
    if sharded.how.gathers:
        return sum(gathered_bytes(micro.graph.captured.step, micro.planned.schedule) for micro in micros)
    learnings = [micro.graph.learning for micro in micros]
    trained = {id(p): p.nbytes for learning in learnings for p in (*learning.returned, *learning.used)}
    return sum(trained.values())


def _shared(sharded: Shared) -> str:
    """What is shared out."""
    if sharded.how.gathers:
        return "parameters"
    return "gradients and optimizer state" if sharded.how.scatters else "optimizer state"

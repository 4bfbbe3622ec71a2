"""What a step sends to other ranks, for its report."""

from __future__ import annotations

from collections.abc import Sequence

from graphopt.base.units import format_bytes
from graphopt.compression.choose import Auto
from graphopt.compression.methods import Compression
from graphopt.passes.joint.compress import sent_bytes
from graphopt.passes.joint.sharding.travelling import gathered_bytes, scattered_bytes
from graphopt.step.micro_graph import Micro
from graphopt.step.ranks.exchange import Exchange
from graphopt.step.sharding.parameters import ShardedParameters
from graphopt.step.sharding.shared_state import SharedState


def sent(
    micros: Sequence[Micro],
    exchange: Exchange | None,
    sharded: ShardedParameters | SharedState | None,
    compress: Compression | Auto | None,
) -> tuple[int, int, tuple[str, ...]]:
    """How many ranks there are, the bytes that each sends in a step of these micro-batches, and lines that say how."""
    if exchange is None:
        return 1, 0, (f"{compress}: no effect in a single process",) * bool(compress)
    steps = [micro.graph.captured.step for micro in micros]
    if sharded is None:
        graphs, over = [step.graph_module.graph for step in steps], exchange.summing
        total_bytes = sum(sent_bytes(graph, over.world) for graph in graphs) if over is not None else 0
        placed: tuple[str, ...] = ()
        if exchange.parallel is not None:
            placed = (f"parameters: {exchange.parallel.spelled}; what layers send is not counted",)
        return exchange.ranks.world, total_bytes, (*placed, *exchange.lines())
    gathered = sum(gathered_bytes(micro.graph.captured.step, micro.planned.schedule) for micro in micros)
    if not sharded.how.gathers:
        gathered = sharded.whole_bytes
    scattered = sum(map(scattered_bytes, steps))
    others = (sharded.ranks.world - 1) / sharded.ranks.world
    lines = (
        f"parameters: {sharded.placed.spelled}",
        f"gathered: {format_bytes(gathered)} in a step; all parameters are {format_bytes(sharded.whole_bytes)}",
        *(exchange.lines() if compress is not None else ()),
    )
    return exchange.ranks.world, int((gathered + scattered) * others), lines

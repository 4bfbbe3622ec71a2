"""All ranks share one budget in one way: the most of what each measured, the first rank's choice."""

from __future__ import annotations

from dataclasses import dataclass, replace

from graphopt.base import records
from graphopt.base.errors import GraphoptError, InfeasibleError
from graphopt.device.messages import broadcast, gather
from graphopt.device.ranks import Ranks
from graphopt.plan.agreement import raise_together
from graphopt.plan.chain_shares import NOTHING, Beside, Curves, share_chain
from graphopt.problem.runs import runs_of, schedule_of
from graphopt.problem.schedule import Schedule

_SCHEMA = "graphopt.fsdp/1"


@dataclass(frozen=True)
class BlockChain:
    """What one rank has to plan: its graphs in order, by their hashes, what is there besides, and its budget.

    Without graphs it has nothing to plan yet, as where its batches had other shapes in each step.
    """

    graph_hashes: tuple[str, ...] = ()
    beside: Beside = NOTHING
    budget_bytes: int = 0


@dataclass(frozen=True)
class _ChainAnswer:
    """Schedules as runs, for each graph the place of its own in them; or the least that would do."""

    schedules: tuple[str, ...] = ()
    places: tuple[int, ...] = ()
    least_bytes: int = 0


def share_alone(chain: BlockChain, curves: Curves) -> list[Schedule]:
    """A schedule for each graph; raises InfeasibleError."""
    return [point.schedule for point in share_chain(curves, chain.beside, chain.budget_bytes)]


def share_together(ranks: Ranks, chain: BlockChain, curves: Curves) -> tuple[BlockChain, list[Schedule]]:
    """The chain as all ranks plan it, and a schedule for each graph, on all ranks alike. A collective call.

    Ranks whose graphs differ, as their batches do, plan each for itself. Raises InfeasibleError or what else one of
    them raises on all of them.
    """
    raw = gather(ranks, records.to_text(_SCHEMA, "chain", chain).encode())
    chains = [records.from_bytes(each, _SCHEMA, "chain", BlockChain) for each in raw]
    if any(each.graph_hashes != chains[0].graph_hashes for each in chains):
        return chain, _each_alone(ranks, chain, curves)
    if not chain.graph_hashes:
        return chain, []
    beside = chains[0].beside
    for each in chains[1:]:
        beside = beside.with_most(each.beside)
    whole = replace(chain, beside=beside, budget_bytes=min(each.budget_bytes for each in chains))
    mine = records.to_text(_SCHEMA, "answer", _led(whole, curves)).encode() if ranks.rank == 0 else b""
    answer = records.from_bytes(broadcast(ranks, mine), _SCHEMA, "answer", _ChainAnswer)
    if answer.least_bytes:
        raise InfeasibleError(whole.budget_bytes, answer.least_bytes)
    schedules = [schedule_of(runs) for runs in answer.schedules]
    return whole, [schedules[place] for place in answer.places]


def _led(chain: BlockChain, curves: Curves) -> _ChainAnswer:
    try:
        chosen = share_alone(chain, curves)
    except InfeasibleError as error:
        return _ChainAnswer(least_bytes=error.minimum_bytes)
    distinct = list(dict.fromkeys(chosen))
    return _ChainAnswer(tuple(map(runs_of, distinct)), tuple(map(distinct.index, chosen)))


def _each_alone(ranks: Ranks, chain: BlockChain, curves: Curves) -> list[Schedule]:
    error: GraphoptError | None = None
    schedules: list[Schedule] = []
    try:
        schedules = share_alone(chain, curves) if chain.graph_hashes else []
    except GraphoptError as caught:
        error = caught
    raise_together(ranks, error)
    return schedules

"""Where the graphs of several processes differ, for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from graphopt.base import records
from graphopt.base.errors import PlanMismatchError
from graphopt.device.messages import gather
from graphopt.device.ranks import Ranks
from graphopt.graph.fingerprint import spell_graph
from graphopt.graph.nodes import source_line

_SCHEMA = "graphopt.graphs/1"
_SHOWN_CHARACTERS = 200


@dataclass(frozen=True)
class _Line:
    """A node of a graph: what it is called, where it comes from, what it is, and that with what it reads."""

    name: str
    source: str
    kind: str
    text: str


@dataclass(frozen=True)
class _Graphs:
    """The ops of every graph of a rank; inputs are left out."""

    ops: tuple[tuple[_Line, ...], ...]


def mismatch_error(ranks: Ranks, odd: Sequence[int], graphs: Sequence[fx.GraphModule]) -> PlanMismatchError:
    """The error for ranks `odd`, which have other graphs than rank 0: it names the first op that differs.

    A collective call: to find that op, all ranks send all their ops.
    """
    sent = records.to_text(_SCHEMA, "graphs", _Graphs(tuple(map(_lines, graphs)))).encode()
    ops = [records.from_bytes(raw, _SCHEMA, "graphs", _Graphs).ops for raw in gather(ranks, sent)]
    return PlanMismatchError(
        f"{'ranks' if len(odd) > 1 else 'rank'} {', '.join(map(str, odd))} captured another graph than rank 0: "
        f"{_first_difference(ops[0], ops[odd[0]], odd[0])}. Processes that train together need the same model, in the "
        "same modes, and inputs of the same shapes when they plan; `group` names the processes that plan together"
    )


def _lines(module: fx.GraphModule) -> tuple[_Line, ...]:
    lines = []
    for node, text in zip(module.graph.nodes, spell_graph(module), strict=True):
        kind, target, _, rest = text.split("|", 3)
        if kind == "call_function":
            lines.append(_Line(node.name, source_line(node), f"{target} {rest.rpartition('|')[2]}", text))
    return tuple(lines)


def _first_difference(mine: Sequence[Sequence[_Line]], theirs: Sequence[Sequence[_Line]], other: int) -> str:
    if len(mine) != len(theirs):
        return f"rank 0 has {len(mine)} of them, rank {other} has {len(theirs)}"
    for one, two in zip(mine, theirs, strict=True):
        for place in range(max(len(one), len(two))):
            if place >= min(len(one), len(two)) or one[place].kind != two[place].kind:
                return f"rank 0 has {_shown(one, place)} where rank {other} has {_shown(two, place)}"
    for one, two in zip(mine, theirs, strict=True):
        for place, (a, b) in enumerate(zip(one, two, strict=True)):
            if a.text != b.text:
                return f"{_shown(one, place)} reads something else on rank {other}"
    return f"the inputs of rank {other} differ"


def _shown(lines: Sequence[_Line], place: int) -> str:
    if place >= len(lines):
        return "no more ops"
    line = lines[place]
    where = f" at {line.source}" if line.source else ""
    return f"{line.name} = {line.kind}"[:_SHOWN_CHARACTERS] + where

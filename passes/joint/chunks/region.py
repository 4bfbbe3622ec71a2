"""Finds a region: large values whose rows are made of the same rows of other values, with what reads and makes them.

It is found by what operators do to rows (`rules`), never by the names of modules. It begins with one large value, and
goes on to all that reads it and, where that is large too, to what else those read. What is small stays outside: rows
that go in are cut from it, rows that come out are put together again. A large value that somebody needs whole, such as
logits that are returned, is made whole outside, and the region is what reads it row by row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field, replace

from torch import fx

from graphopt.graph.joint import JointGraph
from graphopt.graph.nodes import has_effect, is_random, is_view
from graphopt.graph.roles import RUN_ONCE
from graphopt.passes.joint.chunks.ops import is_tensor, name_of, shape_of
from graphopt.passes.joint.chunks.reach import descendants
from graphopt.passes.joint.chunks.rows import Rows
from graphopt.passes.joint.chunks.rules import Sources, sources
from graphopt.passes.joint.chunks.sums import is_weight_of_loss, summands

#: So many values may turn out to be needed whole; each time the region is looked for from the start.
MOST_WHOLE = 12
#: A value is large with at least this share of the elements of the one that a region begins with: what was cut off it
#: (the last token of each sequence) is large too.
LARGE = 0.5


@dataclass(frozen=True)
class RowRegion:
    """Nodes that are run piece by piece, in order, and how many rows they have.

    `rows` says where each has its rows, `sums` are those that are added up over all, with where their inputs have
    rows. It is complete where no value was needed whole that could have been one of them.
    """

    total: int
    nodes: tuple[fx.Node, ...]
    rows: Mapping[fx.Node, Rows]
    sums: Mapping[fx.Node, Sources]
    is_complete: bool

    @property
    def large(self) -> tuple[fx.Node, ...]:
        """Its nodes that would have to be stored whole, largest values first."""
        stored = [node for node in self.rows if is_tensor(node) and not is_view(node)]
        most = max((_numel(node) for node in stored), default=0)
        return tuple(node for node in stored if _numel(node) >= LARGE * most)


def with_replaced(region: RowRegion, replaced: Mapping[fx.Node, fx.Node]) -> RowRegion:
    """The region, where what it reads of others has come in the place of what was there."""
    sums = {
        node: {replaced.get(source, source): rows for source, rows in needs.items()}
        for node, needs in region.sums.items()
    }
    return replace(region, sums=sums)


class _NeededWhole(Exception):
    """A value that was taken for one of the region is needed whole."""

    def __init__(self, node: fx.Node) -> None:
        super().__init__(node.name)
        self.node = node


@dataclass
class _Growth:
    """A region while it is being found."""

    total: int
    large_numel: float
    whole: set[fx.Node]
    rows: dict[fx.Node, Rows] = field(default_factory=dict)
    sums: dict[fx.Node, Sources] = field(default_factory=dict)
    given: dict[fx.Node, list[Rows]] = field(default_factory=dict)
    waiting: list[tuple[fx.Node, Rows]] = field(default_factory=list)

    def is_large(self, node: fx.Node) -> bool:
        value = node if is_tensor(node) else node.args[0]
        return isinstance(value, fx.Node) and is_tensor(value) and _numel(value) >= self.large_numel

    def run(self, node: fx.Node, rows: Rows) -> None:
        self.asks_for(node, rows)
        self.drain()

    def drain(self) -> None:
        while self.waiting:
            node, rows = self.waiting.pop()
            for user in list(node.users):
                self.goes_on(user, node, rows)

    def asks_for(self, node: fx.Node, rows: Rows) -> None:
        """Something reads these rows of a node."""
        if node in self.rows:
            if self.rows[node] != rows:
                raise _NeededWhole(node)
            return
        if rows in self.given.get(node, ()):
            return
        needs = None if node in self.whole or not may_be_in_pieces(node) else sources(node, rows, self.total)
        if needs is not None and self.is_large(node):
            self.joins(node, rows, needs)
            return
        self.given.setdefault(node, []).append(rows)
        if self.is_large(node):
            self.waiting.append((node, rows))

    def joins(self, node: fx.Node, rows: Rows, needs: Sources) -> None:
        self.rows[node] = rows
        self.given.pop(node, None)
        for source, theirs in needs.items():
            self.asks_for(source, theirs)
        if self.is_large(node):
            self.waiting.append((node, rows))

    def goes_on(self, user: fx.Node, source: fx.Node, rows: Rows) -> None:
        """A large value of the region is read."""
        if user in self.rows or user in self.sums or is_weight_of_loss(user):
            return
        if may_be_in_pieces(user) and user not in self.whole:
            summed = summands(user, source, rows)
            if summed is not None:
                self.sums[user] = summed
                for each, theirs in summed.items():
                    self.asks_for(each, theirs)
                return
            for candidate in _possible_rows(user, self.total):
                needs = sources(user, candidate, self.total)
                if needs is not None and needs.get(source) == rows:
                    self.joins(user, candidate, needs)
                    return
        if user in self.whole and source in self.given:
            for candidate in _possible_rows(user, self.total):
                if (sources(user, candidate, self.total) or {}).get(source) == rows:
                    self.asks_for(user, candidate)  # what reads it may still be in pieces
        if source not in self.given:
            raise _NeededWhole(source)


def find_region(
    joint: JointGraph, start: fx.Node, rows: Rows, total: int, *, apart: Set[fx.Node] = frozenset()
) -> RowRegion | None:
    """The region that begins with `start`, whose `total` rows are at `rows`; None where there is none.

    Nodes that are `apart`, those of the backward, are not brought together with others by what stands between them:
    between the forward and the backward of a block is the rest of the model.
    """
    whole: set[fx.Node] = set()
    large_numel = LARGE * _numel(start)
    while True:
        growth = _Growth(total, large_numel, whole)
        try:
            growth.run(start, rows)
            _take_in_between(growth, apart)
        except _NeededWhole as found:
            assert found.node not in whole, f"{found.node} is made whole, and asked for once more"
            whole.add(found.node)
            if len(whole) > MOST_WHOLE:
                return None
            continue
        break
    members = {*growth.rows, *growth.sums}
    nodes = tuple(node for node in joint.graph.nodes if node in members)
    return RowRegion(total, nodes, growth.rows, growth.sums, not whole) if growth.rows else None


def may_be_in_pieces(node: fx.Node) -> bool:
    """Whether an op may be run on a part of its input, several times."""
    if node.op != "call_function" or node.meta.get(RUN_ONCE):
        return False
    return name_of(node) in ("", "detach") or not (is_random(node) or has_effect(node))


def _take_in_between(growth: _Growth, apart: Set[fx.Node]) -> None:
    """Small values between two of the region join it: what they are made of would else have to be whole first."""
    while True:
        behind = descendants(growth.rows.keys() - apart) - apart
        behind |= descendants(growth.rows.keys() & apart) if apart else set()
        single = [(node, found[0]) for node, found in growth.given.items() if node in behind and len(found) == 1]
        between = [(node, rows) for node, rows in single if node not in growth.whole and may_be_in_pieces(node)]
        joining = [(node, rows, sources(node, rows, growth.total)) for node, rows in between]
        found = [(node, rows, needs) for node, rows, needs in joining if needs is not None]
        if not found:
            return
        for node, rows, needs in found:
            if node in growth.given:
                growth.joins(node, rows, needs)
        growth.drain()


def _possible_rows(node: fx.Node, total: int) -> Iterator[Rows]:
    """Wherever a node's result could have so many rows."""
    if not is_tensor(node):  # a loss and the weight of all rows
        elements = shape_of(node.args[0])[0] if name_of(node) == "nll_loss_forward" else 0
        if elements and elements % total == 0:
            yield Rows(0, 1, elements // total)
        return
    shape = shape_of(node)
    for first in range(len(shape)):
        elements = 1
        for end in range(first + 1, len(shape) + 1):
            elements *= shape[end - 1]
            if elements and elements % total == 0:
                yield Rows(first, end - first, elements // total)
                break


def _numel(node: fx.Node) -> int:
    value = node.meta["val"]
    return int(value.numel())

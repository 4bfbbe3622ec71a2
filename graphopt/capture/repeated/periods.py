"""Where the layers of a list are in a sequence of ops: one behind the other, each doing what the one before does.

They are found by their parameters: the op that is the first to read one in the next layer is a period behind. What is
a period of the sequence is then looked at op by op, so that nothing is taken for repeated that only looks so.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from graphopt.base.errors import GraphoptError
from graphopt.capture.repeated.sequence import Item, Sequence


class NotAlike(GraphoptError):
    """The layers of a list cannot be told to do the same; says why. No user sees it: all are captured then."""


@dataclass(frozen=True)
class Zone:
    """Ops of one half in which each does what the one a `period` before does: from `start` to `end`.

    At `cut` further layers come in, with a period on either side.
    """

    start: int
    end: int
    period: int
    cut: int

    @property
    def windows(self) -> range:
        """The ops of the two periods around the cut."""
        return range(self.cut - self.period, self.cut + self.period)


@dataclass(frozen=True)
class FoundLayers:
    """One list in a sequence: where its layers are in the forward, and in the backward.

    `fixed` are values that one layer reads as the next does, so that they are the same for all.
    """

    name: str
    forward: Zone
    backward: Zone
    fixed: frozenset[int]


def find_layers(sequence: Sequence, name: str) -> list[FoundLayers]:
    """Where the layers of the list `name` are, for each place of the backward for further ones; raises NotAlike.

    In the forward they come in behind the first layer. Which place of the backward belongs to it is not known: as a
    rule it is the last.
    """
    periods = [_period(sequence, name, backward) for backward in (False, True)]
    zones = [_zone(sequence, backward, periods[0], periods[backward]) for backward in (False, True)]
    fixed = {
        value
        for zone in zones
        for at in range(zone.start, zone.end - zone.period)
        for value, later in zip(sequence.items[at].inputs, sequence.items[at + zone.period].inputs, strict=True)
        if value == later
    }
    forward, backward = zones
    cuts = range(backward.cut, backward.start + backward.period - 1, -backward.period)
    return [FoundLayers(name, forward, replace(backward, cut=cut), frozenset(fixed)) for cut in cuts]


def _period(sequence: Sequence, name: str, backward: bool) -> int:
    """How far apart the first reads of one parameter are in one layer and in the next."""
    first: dict[tuple[int, str], int] = {}
    for at in sequence.half(backward):
        for value in sequence.items[at].inputs:
            of, layer, parameter = sequence.places.get(value, ("", 0, ""))
            if of == name:
                first.setdefault((layer, parameter), at)
    apart = Counter(
        abs(first[layer + 1, parameter] - at)
        for (layer, parameter), at in first.items()
        if (layer + 1, parameter) in first
    )
    if not apart or not (period := apart.most_common(1)[0][0]):
        raise NotAlike(f"no parameter of {name} is read in one layer as in the next")
    return period


def _zone(sequence: Sequence, backward: bool, forward_period: int, period: int) -> Zone:
    half = sequence.half(backward)
    best = run = half.start
    length = 0
    for at in range(half.start, half.stop - period + 1):
        if at == half.stop - period or not _is_alike(sequence, at, at + period, forward_period):
            if at - run > length:
                best, length = run, at - run
            run = at + 1
    if length < period:
        which = "backward" if backward else "forward"
        raise NotAlike(f"layers differ in the {which}: {length} of {period} ops do as those of the layer before")
    end = best + length + period
    return Zone(best, end, period, end - period if backward else best + period)


def _is_alike(sequence: Sequence, at: int, later: int, forward_period: int) -> bool:
    one, other = sequence.items[at], sequence.items[later]
    if one.what != other.what or len(one.inputs) != len(other.inputs) or len(one.outputs) != len(other.outputs):
        return False
    pairs = zip(one.inputs, other.inputs, strict=True)
    return all(_is_next(sequence, one, value, now, later - at, forward_period) for value, now in pairs)


def _is_next(sequence: Sequence, item: Item, value: int, now: int, period: int, forward_period: int) -> bool:
    """Whether the next layer in the sequence reads `now` where the one before reads `value`."""
    if value == now:
        return True
    step = -1 if item.backward else 1
    made, made_now = sequence.makers.get(value), sequence.makers.get(now)
    if made is None or made_now is None:
        of, layer, parameter = sequence.places.get(value, ("", 0, ""))
        return bool(of) and sequence.places.get(now) == (of, layer + step, parameter)
    if made[1] != made_now[1]:
        return False
    in_backward = sequence.items[made[0]].backward
    return made_now[0] - made[0] == (period if in_backward == item.backward else step * forward_period)

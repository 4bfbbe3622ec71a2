"""A sequence of ops with more layers in it: those of a list repeated, each value where it belongs.

Further layers come in at one place of the forward and at one of the backward. What stands before the first place and
behind the second is of early layers, all between of late ones. An op of a layer reads what it read, so many layers
further as it stands itself; what is the same for all layers stays the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from graphopt.capture.repeated.periods import FoundLayers, NotAlike, Zone, find_layers
from graphopt.capture.repeated.sequence import Item, Place, Sequence
from graphopt.capture.repeated.stand_in import Left


@dataclass(frozen=True)
class Extended:
    """A sequence with more layers: for each of its ops and values the one that it is a copy of.

    `layers` says for each op by how many layers it stands further than that.
    """

    sequence: Sequence
    items: tuple[int, ...]
    values: tuple[int, ...]
    layers: tuple[int, ...]


def extend(sequence: Sequence, name: str, left: Left) -> Extended:
    """The sequence as it were with the layers that were left out of the list `name`; raises NotAlike."""
    *others, last = find_layers(sequence, name)
    for found in others:
        try:
            return _extended(sequence, name, left, found)
        except NotAlike:
            continue
    return _extended(sequence, name, left, last)


def _extended(sequence: Sequence, name: str, left: Left, found: FoundLayers) -> Extended:
    """With the place of the backward that was found for further layers."""
    more = left.count
    order = [*_forward(sequence, found.forward, more), *_backward(sequence, found.backward, more)]
    values = _Residents(sequence, name, left)
    origins = list(values.origins)
    made: list[tuple[int, ...]] = []
    for old, _ in order:
        outputs = sequence.items[old].outputs
        made.append(tuple(range(len(origins), len(origins) + len(outputs))))
        origins.extend(outputs)
    items = []
    for (old, layer), outputs in zip(order, made, strict=True):
        item, inputs = sequence.items[old], []
        for value in item.inputs:
            maker = sequence.makers.get(value)
            if maker is None:
                inputs.append(values.read(value, value in found.fixed, layer))
            else:
                at = _position(sequence, found, more, old, value, layer)
                inputs.append(made[at][maker[1]])
        items.append(Item(item.what, tuple(inputs), outputs, item.backward))
    old_items, layers = zip(*order, strict=True)
    residents = tuple(range(len(values.origins)))
    return Extended(Sequence(tuple(items), residents, values.places), old_items, tuple(origins), layers)


def _forward(sequence: Sequence, zone: Zone, more: int) -> Iterator[tuple[int, int]]:
    """Each op of the longer forward: which it is a copy of, and how many layers further."""
    yield from ((at, 0) for at in range(zone.cut))
    yield from ((at, layer) for layer in range(1, more + 1) for at in range(zone.cut - zone.period, zone.cut))
    yield from ((at, more) for at in range(zone.cut, sequence.boundary))


def _backward(sequence: Sequence, zone: Zone, more: int) -> Iterator[tuple[int, int]]:
    """The same of the backward, whose first layer is the last."""
    yield from ((at, more) for at in range(sequence.boundary, zone.cut))
    yield from ((at, layer) for layer in reversed(range(more)) for at in range(zone.cut - zone.period, zone.cut))
    yield from ((at, 0) for at in range(zone.cut, len(sequence.items)))


def _position(sequence: Sequence, found: FoundLayers, more: int, reader: int, value: int, layer: int) -> int:
    """Where the op is, in the longer sequence, that makes what a copy of `reader` so many layers further reads."""
    maker = sequence.makers[value][0]
    in_backward = sequence.items[maker].backward
    zone = found.backward if in_backward else found.forward
    natural = more if (maker >= zone.cut) is not in_backward else 0
    windows = (found.backward if sequence.items[reader].backward else found.forward).windows
    if value in found.fixed:
        layer = natural
    elif reader not in windows:
        if zone.start <= maker < zone.end and natural != layer:
            raise NotAlike("an op outside of the layers reads what one in their middle makes")
        layer = natural
    further = (more - layer) * zone.period + more * found.forward.period if in_backward else layer * zone.period
    return maker + further


class _Residents:
    """The values that no op makes, by number: those of further layers stand behind those of the first of the run."""

    def __init__(self, sequence: Sequence, name: str, left: Left) -> None:
        self.origins: list[int] = []
        self.places: dict[int, Place] = {}
        self._old, self._name = sequence, name
        self._by_place: dict[tuple[int, str], int] = {}
        self._others: dict[int, int] = {}
        copied = [value for value in sequence.residents if self._layer(value) == left.first + 1]
        for value in sequence.residents:
            if copied and value == copied[0]:
                for further in range(left.count):
                    for each in copied:
                        self._add(each, further)
            self._add(value, left.count if self._layer(value) > left.first else 0)

    def read(self, value: int, fixed: bool, layer: int) -> int:
        """What an op reads that stands so many layers further, where it read this."""
        if value in self._others:
            return self._others[value]
        name, own, parameter = self._old.places[value]
        found = self._by_place.get((own if fixed else own + layer, parameter))
        if found is None or (fixed and own):
            raise NotAlike(f"{parameter} of layer {own} of {name} is read by other layers")
        return found

    def _layer(self, value: int) -> int:
        of, layer, _ = self._old.places.get(value, ("", -1, ""))
        return layer if of == self._name else -1

    def _add(self, value: int, further: int) -> None:
        number = len(self.origins)
        self.origins.append(value)
        of, layer, parameter = self._old.places.get(value, ("", 0, ""))
        if of == self._name:
            self.places[number] = (of, layer + further, parameter)
            self._by_place[layer + further, parameter] = number
        else:
            self._others[value] = number
            if of:
                self.places[number] = (of, layer, parameter)

"""Sequences of ops with further layers, against those that are built with as many layers."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.capture.repeated.extend import extend
from graphopt.capture.repeated.periods import NotAlike
from graphopt.capture.repeated.sequence import Item, Place, Sequence, spelled
from graphopt.capture.repeated.stand_in import Left

NAME = "layers"


class Builder:
    """Makes sequences: values by number, ops one by one."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.places: dict[int, Place] = {}
        self.numbers, self.residents = count(), []

    def resident(self, place: Place | None = None) -> int:
        self.residents.append(next(self.numbers))
        if place is not None:
            self.places[self.residents[-1]] = place
        return self.residents[-1]

    def op(self, what: object, *inputs: int, backward: bool = False) -> int:
        made = next(self.numbers)
        self.items.append(Item(what, inputs, (made,), backward))
        return made

    def built(self) -> Sequence:
        return Sequence(tuple(self.items), tuple(self.residents), self.places)


def network(layers: int, seed: int, odd: int = -1, tail: Callable[[list[int]], list[int]] | None = None) -> Sequence:
    """A step of so many layers, each of the same random ops; layer `odd` does another one.

    `tail` chooses which of the layers' results are read behind them.
    """
    builder, draw = Builder(), random.Random(seed)
    width, back = draw.randint(2, 6), draw.randint(2, 6)
    # what each op of a layer reads beside the one before it: something of its layer, a parameter, or a common value
    forward_reads = [draw.choice(("own", "parameter", "common", "before")) for _ in range(width)]
    backward_reads = [draw.choice(("own", "parameter", "common", "forward", "saved")) for _ in range(back)]
    places = [draw.randrange(10) for _ in range(max(width, back))]
    embedding, common_input = builder.resident(), builder.resident()
    parameters = [[builder.resident((NAME, layer, f"p{i}")) for i in range(2)] for layer in range(layers)]
    head = builder.resident()
    common = builder.op("mask", common_input)
    hidden = builder.op("embed", embedding)
    kept: list[list[int]] = []
    results = [hidden]
    for layer in range(layers):
        before, own = hidden, [builder.op("begin", hidden, parameters[layer][0])]
        for at, reads in enumerate(forward_reads):
            other = {
                "own": own[places[at] % len(own)],
                "parameter": parameters[layer][places[at] % 2],
                "common": common,
                "before": before,
            }[reads]
            own.append(builder.op(("odd" if layer == odd else "op", at), own[-1], other))
        hidden = own[-1]
        kept.append([before, *own])
        results.append(hidden)
    read = tail(results) if tail is not None else [hidden]
    gradient = builder.op("loss", *read, head, backward=True)
    for layer in reversed(range(layers)):
        own = [builder.op("begin back", gradient, parameters[layer][0], backward=True)]
        for at, reads in enumerate(backward_reads):
            other = {
                "own": own[places[at] % len(own)],
                "parameter": parameters[layer][places[at] % 2],
                "common": common,
                "forward": kept[layer][places[at] % len(kept[layer])],
                "saved": kept[layer][0],
            }[reads]
            own.append(builder.op(("back", at), own[-1], other, backward=True))
        gradient = own[-1]
    builder.op("embed back", gradient, backward=True)
    return builder.built()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), more=st.integers(1, 6))
def test_further_layers_are_as_if_they_had_been_there(seed: int, more: int) -> None:
    longer = extend(network(3, seed), NAME, Left(0, more))
    whole = network(3 + more, seed)
    assert list(spelled(longer.sequence)) == list(spelled(whole))
    # values are numbered as there, those that no op makes first
    made = {value for item in whole.items for value in item.outputs}
    order = [*(v for v in range(len(longer.values)) if v not in made), *sorted(made)]
    assert len(order) == len(longer.values)
    assert sorted(longer.sequence.places.values()) == sorted(whole.places.values())


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), odd=st.integers(0, 2))
def test_layers_that_differ_are_refused_or_left_as_they_are(seed: int, odd: int) -> None:
    try:
        longer = extend(network(3, seed, odd=odd), NAME, Left(0, 4)).sequence
    except NotAlike:
        return
    # one layer alone does another thing, and all others what the rest do
    assert list(spelled(longer)) in [list(spelled(network(7, seed, odd=at))) for at in (odd, odd + 4)]


@pytest.mark.parametrize("chosen", [lambda r: [r[1]], lambda r: [r[2]], lambda r: r])
def test_results_from_the_middle_that_are_read_behind_are_refused(chosen: Callable[[list[int]], list[int]]) -> None:
    refused = 0
    for seed in range(20):
        try:
            longer = extend(network(3, seed, tail=chosen), NAME, Left(0, 3)).sequence
        except NotAlike:
            refused += 1
            continue
        # of the last layers that is what it seems: the result of so many before the end
        at_end = list(spelled(network(6, seed, tail=lambda results: [results[-2]])))
        assert chosen([0, 1, 2, 3]) == [2] and list(spelled(longer)) == at_end
    assert refused == 20 or chosen([0, 1, 2, 3]) == [2]


def test_the_first_layers_of_a_list_may_be_others() -> None:
    for seed in range(20):
        few, whole = (network(layers, seed, odd=0) for layers in (4, 9))
        assert list(spelled(extend(few, NAME, Left(1, 5)).sequence)) == list(spelled(whole))

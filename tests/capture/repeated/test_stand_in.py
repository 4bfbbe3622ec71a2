"""Models with fewer layers: which they leave out, and what they share."""

from __future__ import annotations

import torch
from torch import nn

from graphopt.capture.repeated.stand_in import Left, place_of, places_of, stand_in


def block(width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(width, width), nn.Tanh())


class Model(nn.Module):
    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.inner = nn.Module()
        self.inner.layers, self.head = nn.ModuleList(layers), nn.Linear(4, 2)


def test_it_has_few_of_alike_layers_and_all_else() -> None:
    model = Model([block() for _ in range(8)])
    found = stand_in(model, 3)
    assert found is not None and found.left == {"inner.layers": Left(0, 5)}
    assert list(found.model.inner.layers) == list(model.inner.layers)[:3] and len(model.inner.layers) == 8
    assert found.model.head is model.head and type(found.model) is Model
    assert found.model.inner.layers[2][0].weight is model.inner.layers[2][0].weight
    names = {place for _, place in places_of(found.model, found.left)}
    assert ("inner.layers", 2, "0.weight") in names and len(names) == 3 * 2
    assert place_of("inner.layers.2.0.weight", found.left) == ("inner.layers", 2, "0.weight")
    assert place_of("head.weight", found.left) is None


def test_layers_beside_the_run_stay() -> None:
    layers = [block(3), *(block() for _ in range(6)), block(3)]
    found = stand_in(Model(layers), 3)
    assert found is not None and found.left == {"inner.layers": Left(1, 3)}
    assert list(found.model.inner.layers) == [*layers[:4], layers[-1]]
    assert list(found.model.inner.layers._modules) == [str(number) for number in range(5)]


def test_what_is_no_list_of_alike_layers_is_left_alone() -> None:
    shared = block()
    frozen = [block() for _ in range(8)]
    for layer in frozen[::2]:
        layer.requires_grad_(False)
    for layers in ([block() for _ in range(4)], [shared] * 8, frozen, [block(i) for i in range(1, 9)], [nn.Tanh()] * 8):
        assert stand_in(Model(layers), 3) is None
    half = [block() for _ in range(8)]
    half[4] = block().to(torch.bfloat16)
    assert stand_in(Model(half), 3) is None

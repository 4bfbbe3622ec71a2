"""One model that several threads train: each call is a whole, and gradients are eager's bits."""

from __future__ import annotations

import threading
import warnings

import torch
from torch import Tensor, nn

import graphopt

THREADS, CALLS = 3, 12


def test_several_threads_may_call_one_model() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)) for _ in range(3)])
    x = torch.randn(16, 32)

    def gradients(number: int) -> list[Tensor]:
        return list(torch.autograd.grad(model(x * (number + 1)).square().mean(), list(model.parameters())))

    wanted = [gradients(number) for number in range(THREADS)]
    graphopt.optimize(model, "10MiB")  # the first call captures, in whichever thread it is
    found: dict[int, list[list[Tensor]]] = {}

    def calls(number: int) -> None:
        found[number] = [gradients(number) for _ in range(CALLS)]

    threads = [threading.Thread(target=calls, args=(number,)) for number in range(THREADS)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=120)
    assert sorted(found) == list(range(THREADS))
    for number, every in found.items():
        assert all(torch.equal(a, b) for each in every for a, b in zip(each, wanted[number], strict=True))

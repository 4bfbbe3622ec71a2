"""Values of a GPU that are moved to pinned host memory and fetched back."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import graphopt
from graphopt.device.measure import peak_bytes
from graphopt.kernels.offload.host_depot import HostDepot
from graphopt.kernels.offload.link import DepotLink, measure_link
from graphopt.plan.offload import where

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]
CUDA = torch.device("cuda")


@pytest.mark.parametrize("layout", ["plain", "transposed", "a part"])
def test_what_comes_back_has_its_bits(layout: str) -> None:
    whole = torch.randn(512, 700, device=CUDA)
    tensor = {"plain": whole, "transposed": whole.t(), "a part": whole[:, 3:100]}[layout]
    depot = HostDepot(CUDA)
    for _ in range(3):
        token = depot.stow(tensor)
        depot.settle(token)
        fetching = depot.fetch(token)
        depot.wait(token, fetching)
        assert torch.equal(fetching.tensor(), tensor) and fetching.tensor().stride() == tensor.stride()
        del token, fetching
    assert len(depot.tokens) == 0


def test_memory_that_is_used_again_at_once_does_not_reach_what_was_moved() -> None:
    """The copy out reads what computes next would write, were the stream not to wait for it."""
    depot = HostDepot(CUDA)
    for _ in range(20):
        tensor = torch.randn(1 << 22, device=CUDA)
        expected = tensor.clone()
        token = depot.stow(tensor)
        depot.settle(token)
        del tensor
        torch.full((1 << 22,), 7.0, device=CUDA)  # in the memory that was let go of
        fetching = depot.fetch(token)
        depot.wait(token, fetching)
        assert torch.equal(fetching.tensor(), expected)


def test_a_link_has_a_speed() -> None:
    link = measure_link(HostDepot(CUDA), CUDA)
    assert 1e8 < link.write_bytes_per_second < 1e12 and 1e8 < link.read_bytes_per_second < 1e12


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_bits_and_bytes(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(where, "measure_link", lambda *_: DepotLink(1e11, 1e11, 1e-7))
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(512, 2048), nn.GELU(), nn.Linear(2048, 512), nn.Dropout(0.1)) for _ in range(6)]
    eager, x = nn.Sequential(*layers).to(CUDA), torch.randn(4096, 512, device=CUDA)
    call: dict[str, Any] = {"example_inputs": x}
    with pytest.raises(graphopt.BudgetError) as error:
        graphopt.optimize(copy.deepcopy(eager), "1B", **call)
    least = error.value.minimum_bytes
    most = graphopt.optimize(copy.deepcopy(eager), "1TiB", **call).graphopt.plan.eager_peak_bytes  # type: ignore[union-attr]
    budget = int(least + share * (most - least))
    model = graphopt.optimize(copy.deepcopy(eager), budget, offload="host", **call)
    assert model.graphopt.plan.fetched  # type: ignore[union-attr]

    def step(run: nn.Module) -> list[torch.Tensor]:
        run.zero_grad()
        torch.manual_seed(1)
        run(x).square().mean().backward()
        return [p.grad for p in run.parameters() if p.grad is not None]

    expected = step(eager)
    for _ in range(3):
        assert all(map(torch.equal, step(model), expected))
    model.zero_grad()
    assert peak_bytes(lambda: step(model), [*model.parameters(), x], CUDA) <= budget

"""NumPy's functions in a forward: NumPy's bits, in one graph where torch has the same."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import graphopt

X = torch.linspace(0.1, 1, 128 * 64).reshape(128, 64)
Compute = Callable[["Computes", Tensor], Tensor]

ROUNDED: dict[str, Compute] = {
    "mean": lambda _, y: y * float(y.detach().numpy().mean()),
    "sum": lambda _, y: y * float(np.sum(y.detach().numpy(), axis=0)[3]),
    "exp": lambda _, y: y * torch.from_numpy(np.exp(y.detach().numpy())),
    "power": lambda _, y: y * torch.from_numpy(np.abs(y.detach().numpy()) ** 3.3),
    "product": lambda _, y: y @ torch.from_numpy(y.detach().numpy().T @ y.detach().numpy()),
    "argsort": lambda _, y: y[torch.from_numpy(np.argsort(y.detach().numpy()[:, 0], kind="stable"))],
}
EXACT: dict[str, Compute] = {
    "sqrt of a number": lambda _, y: y / np.sqrt(y.shape[-1]),
    "log of a number": lambda _, y: y * float(np.log(3.7)),
    "a table": lambda _, y: y + torch.from_numpy(np.linspace(0, np.pi, 64, dtype=np.float32)),
    "abs and arithmetic": lambda _, y: y * torch.from_numpy(np.abs(y.detach().numpy()) * 3.3 + 1),
    "an array that is kept": lambda model, y: y + torch.from_numpy(model.kept),
}


class Computes(nn.Module):
    def __init__(self, compute: Compute) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(64, 64), nn.Linear(64, 8)
        self.compute, self.kept, self.temperature = compute, np.arange(64, dtype=np.float32) / 7, 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.compute(self, self.layer(x)))  # type: ignore[no-any-return]


def pair(compute: Compute, seed: int = 0) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(seed)
    model = Computes(compute)
    return graphopt.optimize(model, "1GiB", cost_model="roofline"), copy.deepcopy(model)


def same(model: nn.Module, eager: nn.Module) -> bool:
    for each in (model, eager):
        each.zero_grad()
        each(X).square().mean().backward()
    return all(torch.equal(a.grad, b.grad) for a, b in zip(model.parameters(), eager.parameters(), strict=True))


@pytest.mark.fast(1)
@pytest.mark.parametrize("what", ROUNDED)
def test_what_rounds_otherwise_in_torch_is_run_by_numpy(what: str) -> None:
    found = [pair(ROUNDED[what], seed) for seed in range(3)]
    assert all(same(*each) for each in found)
    reasons = [each.reason for each in found[0][0].graphopt.report.breaks]
    assert "a function of NumPy's that rounds otherwise in torch" in reasons


@pytest.mark.parametrize("what", EXACT)
def test_what_has_the_same_bits_in_torch_breaks_no_graph(what: str) -> None:
    model, eager = pair(EXACT[what])
    assert same(model, eager)
    assert not model.graphopt.report.breaks


def test_a_number_that_changes_has_numpys_bits() -> None:
    model, eager = pair(lambda model, y: y * float(np.log(model.temperature)))
    for temperature in (1.3, 1.7, 2.9, 3.1):
        model.temperature = eager.temperature = temperature
        assert same(model, eager)


def test_in_the_backend_it_is_told_of() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(Computes(ROUNDED["exp"]), backend="graphopt", options={"mem_budget": "1GiB"})
    with pytest.warns(UserWarning, match="NumPy's exp .*is traced as torch's, which rounds otherwise"):
        compiled(X)


def test_a_training_step_refuses_it_by_name() -> None:
    model = Computes(ROUNDED["mean"])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    step = graphopt.train_step(model, lambda out, _: out.sum(), optimizer, cost_model="roofline")
    with pytest.raises(graphopt.CaptureError, match="a function of NumPy's that rounds otherwise"):
        step(X, X)

from __future__ import annotations

import pytest
import torch
from torch import nn

from graphopt import train_step
from graphopt.base.errors import UsageError
from graphopt.cost_models.model_state import optimizer_bytes
from graphopt.device import measure
from graphopt.kernels import use


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(10, 4), nn.Linear(4, 10, bias=False)
        self.head.weight = self.embedding.weight
        self.frozen = nn.Parameter(torch.zeros(7), requires_grad=False)
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.embedding(x)).sum() + self.norm(torch.ones(2, 3)).sum()


TRAINED = 40 + 6  # tied weight once, batch norm's weight and bias


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p),
    "adamw": lambda p: torch.optim.AdamW(p, fused=True),
    "amsgrad": lambda p: torch.optim.Adam(p, amsgrad=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_prediction_is_what_the_optimizer_then_holds(name):
    model = Tied()
    optimizer = OPTIMIZERS[name](model.parameters())
    predicted = optimizer_bytes(optimizer)
    model(torch.zeros(5, dtype=torch.int64)).backward()
    optimizer.step()
    assert optimizer_bytes(optimizer) == predicted
    copies = {"sgd": 0, "momentum": 1, "nesterov": 1, "amsgrad": 3}.get(name, 2)
    steps = 4 * 3 if name in ("adam", "adamw", "amsgrad") else 0
    assert predicted == copies * 4 * TRAINED + steps


def test_other_optimizers_are_known_from_a_rehearsal_of_their_step():
    model = nn.Linear(3, 3)
    optimizer = torch.optim.Rprop(model.parameters())
    predicted = optimizer_bytes(optimizer)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert optimizer_bytes(optimizer) == predicted
    assert predicted == 2 * 4 * 12 + 2 * 4


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.RMSprop])
def test_state_that_is_there_counts_beside_what_will_be(kind):
    first, second, unused = (nn.Parameter(torch.ones(size)) for size in (10, 100, 1000))
    optimizer = kind([first])
    first.grad = torch.ones(10)
    optimizer.step()
    optimizer.add_param_group({"params": [second, unused]})
    copies = 2 if kind is torch.optim.AdamW else 1
    assert optimizer_bytes(optimizer, learns=lambda p: p is not unused) == copies * 4 * 110 + 2 * 4
    assert optimizer_bytes(optimizer) == copies * 4 * 1110 + 3 * 4


def test_unknown_optimizer_asks_for_a_step_first():
    with pytest.raises(UsageError, match=r"LBFGS.*first step"):
        optimizer_bytes(torch.optim.LBFGS(nn.Linear(3, 3).parameters()))


#: dtype of the parameters, masters, micro-batches -> multiples of the number of parameters, under AdamW.
POLICIES = {
    "float32": (torch.float32, False, 1, 16),
    "float32, accumulating": (torch.float32, False, 2, 16),
    "half with masters": (torch.bfloat16, True, 1, 16),
    "half with masters, accumulating": (torch.bfloat16, True, 2, 18),
    "half": (torch.bfloat16, False, 1, 8),
    "half, accumulating": (torch.bfloat16, False, 2, 10),
}


@pytest.mark.fast(2)
@pytest.mark.parametrize("name", POLICIES)
def test_what_a_training_step_takes_is_what_its_policy_says(name):
    dtype, masters, accumulate, multiple = POLICIES[name]
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(256, 256, bias=False) for _ in range(17)]).to(dtype)
    batch = torch.randn(2, 256, dtype=dtype), torch.randn(2, 256, dtype=dtype)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count > 1_000_000
    # Adam's step counts are a number for each tensor
    held_bytes = multiple * count + 4 * 17
    moment_bytes = 8 * count if masters or dtype == torch.float32 else 4 * count
    assert optimizer_bytes(optimizer, masters=masters) == moment_bytes + 4 * 17

    step = train_step(
        model, nn.functional.mse_loss, optimizer, accumulate=accumulate, masters=masters, cost_model="roofline"
    )
    step(*batch)
    resident = [*model.parameters(), *step.state_dict()["masters"].values(), *step.accumulators]
    resident += [tensor for state in optimizer.state.values() for tensor in state.values()]
    with use("stock"):
        peak_bytes = measure.peak_bytes(lambda: step(*batch), resident, "cpu")
    # what torch's ops convert to float32 is one half gradient; activations are those of two rows
    converted_bytes = 256 * 256 * 4 if masters or accumulate > 1 else 0
    activation_bytes = 17 * 2 * 256 * 4 * 4
    # what a product of this dtype takes beside its result is this CPU's affair
    rows = torch.randn(2, 256, dtype=dtype)
    product_bytes = measure.peak_bytes(lambda: torch.mm(rows.t(), rows), [rows], "cpu") - rows.nbytes
    scratch_bytes = max(product_bytes - 256 * 256 * dtype.itemsize, 0)
    # the half gradient that is about to be added to its sum
    transient_bytes = 2 * 256 * 256 if dtype == torch.bfloat16 and accumulate > 1 else 0
    assert 0 <= peak_bytes - held_bytes <= transient_bytes + converted_bytes + activation_bytes + scratch_bytes

"""Models with recurrent layers, trained inside a budget: as planned, with eager's bits."""

from __future__ import annotations

import copy

import pytest
import torch

import graphopt
from tests.support.loops import EagerLoop
from tests.support.recurrent_models import MODELS, Stacked, measured_bytes, step_of

#: Autograd starts from a loss of one number, whose 8 bytes are never held with the most; blocks are of 64 bytes.
WITHIN_BYTES = 1024


@pytest.mark.fast(1)
@pytest.mark.parametrize("name", MODELS)
def test_it_trains_inside_the_budget_as_planned(name: str) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    make, data = MODELS[name]
    model, batch = make(), data()
    eager = copy.deepcopy(model)
    expected, eager_bytes = step_of(eager, eager, batch), measured_bytes(copy.deepcopy(model), batch)
    with pytest.raises(graphopt.BudgetError) as too_small:
        graphopt.optimize(model, "1KiB", example_inputs=batch)
    least = too_small.value.minimum_bytes
    assert least < 0.7 * eager_bytes
    for budget in (least, (least + eager_bytes) // 2):
        graphopt.optimize(model, budget, example_inputs=batch)
        plan: graphopt.Plan = model.graphopt.plan  # type: ignore[assignment, union-attr]
        statistics = [buffer.clone() for buffer in model.buffers()]
        found = step_of(model, model, batch)
        assert len(found) == len(expected) and all(map(torch.equal, found, expected))
        measured = measured_bytes(model, batch)
        assert measured <= budget and abs(plan.peak_bytes - measured) <= WITHIN_BYTES
        for buffer, before in zip(model.buffers(), statistics, strict=True):
            buffer.copy_(before)
        model.graphopt.restore()  # type: ignore[union-attr]


def test_a_training_step_has_the_bits_of_a_plain_loop() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, batch = Stacked(16), torch.randn(8, 10, 32)
    eager = copy.deepcopy(model)
    loop = EagerLoop(eager, torch.optim.SGD(eager.parameters(), lr=0.1, fused=True), accumulate=2)
    with graphopt.kernels.use("stock"):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
        with pytest.raises(graphopt.BudgetError) as too_small:
            graphopt.train_step(model, None, optimizer, "1KiB", accumulate=2, example_inputs=batch)
        least = too_small.value.minimum_bytes
        step = graphopt.train_step(model, None, optimizer, least, accumulate=2, example_inputs=batch)
        for seed in range(3):
            torch.manual_seed(seed)
            ours = step(batch).loss
            state = torch.get_rng_state()
            torch.manual_seed(seed)
            assert torch.equal(ours, loop(batch)[0])
            assert torch.equal(state, torch.get_rng_state())
    assert all(map(torch.equal, model.parameters(), eager.parameters()))

"""Models with recurrent layers, trained inside a budget: as planned, with eager's bits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

import graphopt
from graphopt.capture.aot import break_reason
from graphopt.device.measure import peak_bytes
from tests.support.loops import EagerLoop
from tests.support.recurrent_models import MODELS, Stacked, Tagger, tagged_batch

#: Autograd starts from a loss of one number, whose 8 bytes are never held with the most; blocks are of 64 bytes.
WITHIN_BYTES = 1024


def step_of(model: nn.Module, run: Callable[..., Tensor], batch: Sequence[Tensor]) -> list[Tensor]:
    """Loss, gradients and the generator's state."""
    torch.manual_seed(7)
    model.zero_grad(set_to_none=True)
    loss = run(*batch)
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None), torch.get_rng_state()]


def measured_bytes(model: nn.Module, batch: Sequence[Tensor]) -> int:
    model.zero_grad(set_to_none=True)
    return peak_bytes(lambda: model(*batch).backward(), [*model.parameters(), *model.buffers(), *batch], "cpu")


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


@pytest.mark.parametrize("kind", ["GRU", "LSTM", "RNN"])
@pytest.mark.parametrize("sort", [True, False])
def test_packed_sequences_run_between_graphs_with_eagers_bits(kind: str, sort: bool) -> None:
    """Their lengths are data, which no graph may hold: the plan says where it ends for them."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, batch = Tagger(kind, sort=sort), tagged_batch()
    eager = copy.deepcopy(model)
    graphopt.optimize(model, "1GiB", cost_model="roofline")
    for longest in (20, 20, 17):
        batch = tagged_batch(longest=longest)
        expected, found = step_of(eager, eager, batch), step_of(model, model, batch)
        assert len(found) == len(expected) and all(map(torch.equal, found, expected))
    reasons = [break_reason(graph.module) for graph in model.graphopt.session.graphs]  # type: ignore[union-attr]
    assert "recurrent_models.py" in reasons[0] and reasons[-1] == ""

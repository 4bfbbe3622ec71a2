"""Real architectures at every budget: measured inside it, as predicted, with the very gradients.

`python -m benchmarks.planning.matrix` prints the same for the whole zoo.
"""

from __future__ import annotations

import pytest

from benchmarks.planning import matrix
from tests.support.zoo import ZOO

#: Attention with dropout, encoder-decoder, tied embeddings, BatchNorm, long skips and concatenations, experts, buffers
#: that change, in-place writes, autocast, shared and frozen weights.
MODELS = (
    *("gpt2", "bert", "t5", "llama", "vit", "convnext", "resnet50", "unet"),
    *("mixture_of_experts", "ema_autoencoder", "in_place", "autocast", "shared_and_frozen", "by_hand"),
)


@pytest.mark.fast(2)
@pytest.mark.parametrize("model", MODELS)
def test_every_budget_holds(model: str) -> None:
    reference = matrix.make_reference(model)
    # the least for every model, and of the others one for each in turn
    *others, least = matrix.SHARES
    shares = (others[MODELS.index(model) % len(others)], least)
    cells = [matrix.run_cell(reference, share) for share in shares]
    for cell in cells:
        print(cell)
    for cell in (cell for cell in cells if cell.feasible):
        assert cell.error == "", cell
        assert cell.measured_bytes <= cell.budget_bytes, cell
        assert abs(cell.predicted_bytes - cell.measured_bytes) <= 0.02 * cell.measured_bytes, cell
        assert cell.unlike_captured == () and cell.unlike_eager == (), cell
    assert all(cell.error.startswith("BudgetError") for cell in cells if not cell.feasible)
    assert cells[-1].feasible and cells[0].overhead <= cells[-1].overhead


@pytest.mark.slow
def test_a_model_that_branches_on_tracing_equals_its_captured_graph() -> None:
    reference = matrix.make_reference("llama_sdpa")
    cell = matrix.run_cell(reference, 0.5)
    assert ZOO["llama_sdpa"]().traced_apart
    assert cell.fits and cell.unlike_captured == ()
    assert cell.unlike_eager and cell.worst_difference < 1e-6

"""Sharded training beside DDP, one process and float64, as the benchmark does it, on its smallest model."""

from __future__ import annotations

import pytest

from benchmarks.sharded_training import SPOILT_STEP, run_model, table_of
from tests.support.ranks import run_ranks


@pytest.mark.slow
def test_sharded_steps_are_as_near_to_float64_as_those_of_ddp() -> None:
    (cell,) = run_ranks(2, run_model, "experts", SPOILT_STEP + 2, (0.1,))[0]
    assert cell.skipped == 1
    assert cell.peak_bytes <= cell.planned_bytes <= cell.budget_bytes
    assert cell.planned_bytes - cell.peak_bytes < 0.02 * cell.planned_bytes
    assert cell.from_ddp < 8
    assert cell.sharded < 1.1 * max(cell.ddp, cell.one_process)
    assert cell.loss_sharded < 8
    assert table_of([cell]).row_count == 1

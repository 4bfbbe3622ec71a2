"""`auto` is never worse than checkpointing every block, nor than PyTorch's own budget at the peaks it reaches."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import pytest

from graphopt.planned import CapturedGraph
from graphopt.schedule import simulate

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import common
import peer_schedules
import peers
import subjects

MODELS = ("gpt2", "bert")
RATIOS = (0.0, 0.1, 0.3, 0.5, 0.9)


@cache
def captured(model: str) -> CapturedGraph:
    return common.capture(model, "roofline")


@cache
def subject_of(model: str) -> subjects.Subject:
    return subjects.subject_of(captured(model), model)


@pytest.mark.parametrize("model", MODELS)
def test_every_block_checkpointed_is_a_real_plan(model: str) -> None:
    graph = captured(model)
    schedule = peer_schedules.checkpoint_every_block(graph)
    blocks = {peer_schedules.block_of(op.module_path) for op in graph.step.ops} - {""}
    again = {peer_schedules.block_of(graph.step.ops[i].module_path) for i in schedule if schedule.count(i) > 1}
    assert again == blocks and len(blocks) == 4
    assert simulate(graph.problem, schedule).peak_bytes < 0.5 * graph.eager.peak_bytes


@pytest.mark.parametrize("model", MODELS)
def test_auto_is_no_worse_than_every_block_checkpointed(model: str) -> None:
    graph = captured(model)
    row = peers.compare(graph, model, "checkpoint", "every block", peer_schedules.checkpoint_every_block(graph))
    assert row.verdict != "WORSE", row
    assert row.auto_peak_bytes <= row.peer_peak_bytes, row


@pytest.mark.parametrize("model", MODELS)
def test_auto_is_no_worse_than_pytorchs_budget_at_the_peaks_it_reaches(model: str) -> None:
    graph = captured(model)
    rows = [
        peers.compare(graph, model, "PyTorch budget", str(r), peer_schedules.pytorch_budget(graph, r)) for r in RATIOS
    ]
    assert [row for row in rows if row.verdict == "WORSE" or row.auto_peak_bytes > row.peer_peak_bytes] == []
    assert min(row.peer_peak_bytes for row in rows) < 0.5 * graph.eager.peak_bytes


def test_blocks_are_found_in_module_paths() -> None:
    assert peer_schedules.block_of("model.transformer.h.3.mlp.c_fc") == "model.transformer.h.3"
    assert peer_schedules.block_of("model.encoder.block.0.layer.1.dropout") == "model.encoder.block.0"
    assert peer_schedules.block_of("model.bert.encoder.layer.11.output.dense") == "model.bert.encoder.layer.11"
    assert peer_schedules.block_of("model.lm_head") == ""

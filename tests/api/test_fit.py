"""What of a batch fits: sizes found are the largest, nothing of theirs is allocated, and the command says it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import graphopt
from graphopt.api.fit import OPTIMIZERS, fit_model, largest_fitting, stand_in
from graphopt.cli import cli
from graphopt.device import measure

NEEDS = {
    "line": lambda size, a, b: a + b * size,
    "curve": lambda size, a, b: a + b * size + size**2 // 64,
    "steps": lambda size, a, b: a + b * (size // 100),
    "root": lambda size, a, b: a + int(b * size**0.5),
}


@given(st.sampled_from(sorted(NEEDS)), st.integers(0, 5000), st.integers(1, 300), st.integers(1, 600), st.booleans())
def test_the_largest_that_fits_is_found(shape: str, base: int, each: int, first: int, seeded: bool) -> None:
    most, budget = 1000, 20_000

    def need(size: int) -> int:
        assert 1 <= size <= most and size not in asked
        asked.append(size)
        return NEEDS[shape](size, base, each)

    asked: list[int] = []
    known = {500: NEEDS[shape](500, base, each)} if seeded else {}
    found = largest_fitting(need, budget, first, most, known)
    assert found == max((n for n in range(1, most + 1) if NEEDS[shape](n, base, each) <= budget), default=0)
    assert len(asked) <= (6 if shape == "line" else 40)


def test_a_size_that_nothing_limits_is_the_most() -> None:
    assert largest_fitting(lambda _: 7, 8, 3, 1 << 24) == 1 << 24
    assert largest_fitting(lambda _: 9, 8, 3, 1 << 24) == 0
    assert largest_fitting(lambda _: 9, 8, 1, 0) == 0


def test_a_stand_in_has_the_layout_of_its_tensor_and_no_memory() -> None:
    image, mask, turned = torch.zeros(4, 3, 5, 5), torch.zeros(5, 5), torch.zeros(7, 4).t()
    nhwc = image.to(memory_format=torch.channels_last)
    (grown, last, kept, column), kwargs = stand_in((image, nhwc, mask, turned), {"scale": 2.0}, 10**9)
    assert grown.shape == last.shape == (10**9, 3, 5, 5) and grown.is_contiguous() and grown.device == image.device
    assert last.stride() == nhwc.stride() and column.stride() == (7, 1)
    assert kept is mask and kwargs == {"scale": 2.0}
    assert not any(type(tensor) is torch.Tensor for tensor in (grown, last, column))


def build() -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor], Any]:
    torch.manual_seed(0)
    layers = [m for _ in range(2) for m in (nn.Linear(32, 96), nn.GELU(), nn.Linear(96, 32))]
    return nn.Sequential(*layers), (torch.randn(64, 32), torch.randn(64, 32)), nn.functional.mse_loss


def fits(rows: int, budget: int) -> bool:
    model, _, loss = build()
    batch = (torch.randn(rows, 32), torch.randn(rows, 32))
    optimizer = torch.optim.AdamW(model.parameters())
    options: dict[str, Any] = {"cost_model": "roofline", "update_in_backward": False}
    try:
        graphopt.train_step(model, loss, optimizer, budget, example_inputs=batch, **options)
    except graphopt.BudgetError:
        return False
    return True


def test_the_largest_batch_is_one_that_fits_and_is_never_allocated() -> None:
    model, inputs, loss = build()
    budget = 4 * 2**20
    peak_bytes = measure.peak_bytes(
        lambda: results.append(fit_model(model, inputs, loss, mem_budget=budget, cost_model="roofline")), (), "cpu"
    )
    (found,) = results
    assert (
        found.largest_batch > 1000 and fits(found.largest_batch, budget) and not fits(found.largest_batch + 1, budget)
    )
    assert peak_bytes < found.largest_batch * 32 * 4
    assert found.largest_micro_batch == found.rows == 64 and found.optimizer == "AdamW"
    assert found.chosen in found.ways and found.ways[0].micro_batches == 1


results: list[Any] = []


def test_the_exact_costs_have_the_last_word() -> None:
    model, inputs, loss = build()
    texts: list[str] = []
    found = fit_model(model, inputs, loss, mem_budget="1MiB", optimizer="sgd", tell=texts.append)
    # mse_loss returns a number on the storage of a whole input, which only a run of it tells
    rough = fit_model(model, inputs, loss, mem_budget="1MiB", optimizer="sgd", cost_model="roofline")
    assert 0 < found.largest_batch < rough.largest_batch
    assert "planning micro-batches of 64 of 64 rows" in texts and any("largest batch" in text for text in texts)


def test_a_batch_that_must_be_cut() -> None:
    model, inputs, loss = build()
    optimizer = torch.optim.AdamW(model.parameters())
    step = graphopt.train_step(model, loss, optimizer, example_inputs=inputs, cost_model="roofline")
    whole = step.plan.minimum_bytes
    found = fit_model(model, inputs, loss, mem_budget=whole - 4000, cost_model="roofline")
    assert found.chosen is not None and found.chosen.micro_batches > 1 and found.ways[0].peak_bytes is None
    assert found.chosen.seconds_a_row == min(way.seconds_a_row or math.inf for way in found.ways)
    assert found.chosen.micro_rows <= found.largest_micro_batch < 64 and 0 < found.largest_batch < 64
    text, most = str(found), found.largest_micro_batch
    assert "does not fit" in text and "◆ chosen" in text and f"largest micro-batch of this batch: {most} rows" in text


@pytest.mark.parametrize(("name", "copies"), [("adamw", 2), ("adam", 2), ("sgd", 1), ("none", 0)])
def test_the_optimizers_state_counts(name: str, copies: int) -> None:
    model, inputs, loss = build()
    count = sum(parameter.numel() for parameter in model.parameters())
    step = graphopt.train_step(
        model, loss, OPTIMIZERS[name](list(model.parameters())), example_inputs=inputs, cost_model="roofline"
    )
    assert step.plan.resident_bytes.get("optimizer", 0) // (4 * count) == copies


TRAIN = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Linear(32, 32), (torch.randn(64, 32), torch.randn(64, 32)), nn.functional.mse_loss

def with_optimizer():
    model, inputs, loss = build()
    return model, inputs, loss, torch.optim.RMSprop(model.parameters())
"""


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "train_to_fit.py"
    path.write_text(TRAIN)

    def run(*words: str) -> tuple[int, str]:
        code = cli.main(["fit", *words, "--cost-model", "roofline"])
        return code, capsys.readouterr().out

    code, out = run(f"{path}:build", "--mem-budget", "2MiB")
    assert code == 0 and "FITS" in out and "◆ chosen" in out and "largest batch without accumulation" in out
    code, out = run(f"{path}:build", "--mem-budget", "2MiB", "--optimizer", "none", "--json")
    data = json.loads(out)
    assert code == 0 and data["schema"] == "graphopt.fit/1" and data["optimizer"] == "SGD"
    assert data["chosen"] in data["ways"] and data["largest_batch"] > data["rows"] == 64
    assert json.loads(run(f"{path}:with_optimizer", "--mem-budget", "2MiB", "--json")[1])["optimizer"] == "RMSprop"
    code, out = run(f"{path}:build", "--mem-budget", "20KB")
    assert code == 3 and "DOES NOT FIT" in out and "not even one row" in out

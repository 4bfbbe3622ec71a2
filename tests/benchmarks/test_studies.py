"""The case studies: they reach what they state, with eager's bits, and their page has what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.studies.__main__ import main
from benchmarks.studies.lars import LARS
from benchmarks.studies.page import PAGE, PLACE, filled
from benchmarks.studies.results import RESULTS, latest
from benchmarks.studies.subjects import STUDIES, SUBJECTS
from benchmarks.studies.tables import tables
from benchmarks.studies.training import LARS_RATE, SGD_RATE
from benchmarks.studies.variants import RANKS, variants_of
from examples import study_images, study_series, study_text, study_translation
from graphopt.compression.protocols import wire_bytes

EXAMPLES = {
    "images": study_images,
    "text": study_text,
    "translation": study_translation,
    "series": study_series,
}
#: Beside the plain step, its loop and its checkpoints: for each study what the others' small ablation has not.
SMALL_WAYS = {
    "images": ["fp16, dynamic from 2²⁴"],
    "text": ["LARS, batch × 4, warm-up"],
    "series": ["bf16, constant 1024", "two ranks", "DGC 5 %, warm-up"],
}


def test_the_tables_of_the_page_are_those_of_the_results() -> None:
    text = PAGE.read_text(encoding="utf-8")
    made = tables(lambda part: latest(RESULTS, part))
    assert {name for _, name, _ in PLACE.findall(text)} == set(made)
    assert filled(text, made) == text


def test_exact_ways_have_plain_bits_in_the_results() -> None:
    rows = [row for study in STUDIES for row in latest(RESULTS, study)["rows"]]
    exact = [row for row in rows if row["variant"].startswith("checkpoints")]
    assert len(exact) >= len(STUDIES) and all(all(row["same_losses"]) for row in exact)
    assert all(row["peak_bytes"] <= row["budget_bytes"] for row in exact)


@pytest.mark.parametrize("study", sorted(STUDIES))
def test_every_way_is_in_the_results_of_every_model(study: str) -> None:
    rows = latest(RESULTS, study)["rows"]
    for model in STUDIES[study]:
        assert {row["variant"] for row in rows if row["model"] == model} == {way.name for way in variants_of(model)}


def test_bytes_sent_are_those_of_the_protocols() -> None:
    sent = {row["variant"]: row["sent_bytes"] for row in latest(RESULTS, "images")["rows"] if row["group"] == "ranks"}
    shapes = [tuple(parameter.shape) for parameter in study_images.build()[0].parameters()]
    assert sent == {way.name: wire_bytes(way.options.get("compress"), shapes, 2) for way in RANKS}
    assert sent["TopK 5 %"] < sent["EightBit"] < sent["HalfCast fp16"] < sent["two ranks"] == 4 * 19_714


@pytest.mark.fast(1)
@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_each_reaches_its_goal_with_and_without_graphopt_by_the_same_bits(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [EXAMPLES[name].main(words) for words in ([], ["--mem-budget", "none"])]
    said = [line for line in capsys.readouterr().out.splitlines() if line.endswith("reached")]
    assert found[0] == found[1]
    assert len(said) == 2 and said[0] == said[1] and "not reached" not in said[0]


@pytest.mark.fast(1)
@pytest.mark.parametrize("name", sorted(STUDIES))
def test_a_small_ablation_has_all_of_its_rows(name: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    ways = ["a loop without graphopt", "plain", "checkpoints, 50 %", *SMALL_WAYS[name]]
    main(
        [
            name,
            "--small",
            "--seeds",
            "1",
            "--models",
            next(iter(STUDIES[name])),
            "--json",
            str(path),
            "--variants",
            *ways,
        ]
    )
    rows = {row["variant"]: row for row in json.loads(path.read_text())["rows"]}
    assert list(rows) == ways
    assert all(row["curves"][0][-1] == [row["steps"], row["qualities"][0]] for row in rows.values())
    tight = rows["checkpoints, 50 %"]
    assert tight["same_losses"] == [True]
    assert tight["peak_bytes"] <= tight["budget_bytes"] < rows["plain"]["peak_bytes"]


def test_every_model_has_a_rate_for_every_optimizer() -> None:
    assert set(SGD_RATE) == set(LARS_RATE) == set(SUBJECTS)


def test_lars_steps_by_the_share_of_the_weight_that_its_paper_names() -> None:
    weight = nn.Parameter(torch.tensor([[3.0, 4.0]]))
    optimizer = LARS([weight], lr=2.0, momentum=0.9, weight_decay=0.5, trust=0.1)
    weight.grad = torch.tensor([[0.0, 1.0]])
    optimizer.step()
    decayed = torch.tensor([[1.5, 3.0]])
    first = 2.0 * 0.1 * 5 / decayed.norm() * decayed
    assert torch.allclose(weight, torch.tensor([[3.0, 4.0]]) - first)

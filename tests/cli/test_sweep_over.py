"""`graphopt sweep --over`: sizes down and across, what fits and at what price, and the formula."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from graphopt.base.errors import UsageError
from graphopt.cli import cli
from graphopt.cli.over import parse_over, sizes_between

FILE = """
from tests.api.test_estimate_by_size import Attention, tokens

def build():
    return Attention(), tokens(4, 32)
"""


@pytest.fixture
def target(tmp_path: Path) -> str:
    path = tmp_path / "attention.py"
    path.write_text(FILE)
    return f"{path}:build"


def test_ranges_are_read() -> None:
    assert parse_over("batch=1:64, length=128:4_096") == (
        {"batch": 0, "length": 1},
        {"batch": (1, 64), "length": (128, 4096)},
    )
    assert parse_over("side@2=32:512") == ({"side": 2}, {"side": (32, 512)})
    for wrong in ("batch", "batch=64:1", "batch=0:4", "a=1:2,a=3:4", "a=1:2,b=1:2,c=1:2", "batch=1-64", ""):
        with pytest.raises(UsageError, match="--over"):
            parse_over(wrong)


def test_sizes_are_apart_by_their_ratios() -> None:
    assert sizes_between(1, 64) == [1, 2, 4, 8, 16, 32, 64]
    assert sizes_between(128, 1000) == [128, 256, 512, 1000]
    assert sizes_between(7, 7) == [7]
    many = sizes_between(1, 100_000)
    assert len(many) == 8 and many[0] == 1 and many[-1] == 100_000


def test_a_table_a_picture_and_the_formula(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sweep", target, "--over", "batch=1:16,length=16:128", "--cost-model", "roofline"]
    assert cli.main([*words, "--mem-budget", "1MiB"]) == 0
    text = capsys.readouterr().out
    assert "Attention, in 1.0 MiB" in text and "needs" in text and "▒ fits with recomputation" in text
    assert "batch from 1 to 16, length from 16 to 128" in text and "times are the roofline's" in text
    assert max(map(len, text.splitlines())) <= 160
    assert cli.main([*words, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["schema"] == "graphopt.sizes/1" and len(data["points"]) == 5 * 4
    (one,) = (point for point in data["points"] if point["sizes"] == {"batch": 4, "length": 32})
    assert one["minimum_bytes"] < one["eager_bytes"] and "batch*length**2" in data["formula"]["eager"]
    assert "Max(1" not in data["formula"]["eager"]  # length - 1 is no less where length is a symbol


def test_a_budget_alone_is_refused(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sweep", target, "--mem-budget", "1MiB"]) == 2
    assert "--over" in capsys.readouterr().err

"""The demo does what it says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from graphopt.cli import cli

pytest.importorskip("torch")


def test_it_learns_inside_the_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    from graphopt.cli.demo import run_demo

    figures = run_demo(4, str(tmp_path / "demo.html"))
    page = (tmp_path / "demo.html").read_text(encoding="utf-8")
    assert "Measured in training" in page and "The last 4 steps were measured" in page
    assert figures["peak_bytes"] <= figures["budget_bytes"] <= figures["eager_peak_bytes"] / 2.9
    assert figures["bitwise"] and figures["losses"][-1] < figures["losses"][0]
    assert "Memory over the steps" in capsys.readouterr().out


def test_without_transformers_it_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert cli.main(["demo"]) == 2
    assert "pip install 'transformers" in capsys.readouterr().err

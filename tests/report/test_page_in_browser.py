"""The page as a reader has it: drawn, pointed at, sorted and folded by a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import graphopt
from graphopt.api.optimize import plan_model
from graphopt.report.data import Report, StepFigures, TakenStep
from graphopt.report.html import render_html
from graphopt.report.sweep import sweep_html
from graphopt.report.timeline import GraphTimeline
from tests.support.browser import Tab, browser
from tests.support.plans import MIB, hostile_report, make_report

VIEWS = [(width, theme) for width in (500, 1280) for theme in ("light", "dark")]


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def report() -> Report:
    """That of a real plan, in which some run again and dropout keeps its generator's state."""
    torch.manual_seed(0)
    layers = [m for _ in range(3) for m in (nn.Linear(32, 128), nn.GELU(), nn.Dropout(0.1), nn.Linear(128, 32))]
    model, batch = nn.Sequential(*layers), (torch.randn(64, 32), torch.randn(64, 32))
    curve = graphopt.estimate(model, batch, nn.functional.mse_loss, cost_model="roofline")
    budget = curve.minimum_bytes + (curve.eager_peak_bytes - curve.minimum_bytes) // 8
    return plan_model(model, batch, nn.functional.mse_loss, mem_budget=budget, cost_model="roofline").report


@pytest.fixture(scope="module")
def page(report: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(report, tmp_path_factory.mktemp("page"))


def written(report: Report, folder: Path) -> Path:
    path = folder / "report.html"
    path.write_text(render_html(report), encoding="utf-8")
    return path


def timeline_of(report: Report, name: str = "chosen") -> GraphTimeline:
    found = report.graphs[0].timeline(name)
    assert found is not None
    return found


def place_of(tab: Tab, step: int, count: int) -> tuple[float, float]:
    """Where a step is in the drawing, once that is in sight."""
    tab.run("document.querySelector('.timeline').scrollIntoView({block: 'center'})")
    box = tab.run("JSON.parse(JSON.stringify(document.querySelector('.timeline .u-over').getBoundingClientRect()))")
    return box["x"] + box["width"] * (step + 0.5) / count, box["y"] + box["height"] / 2


def shown(tab: Tab) -> dict[str, Any]:
    """The panel: its step, heading and rows."""
    found: dict[str, Any] = tab.run(
        """(() => {
          const at = document.querySelector('.at'), rows = [...at.querySelectorAll('tbody tr:not(.total)')];
          const cell = (row) => [...row.cells].map((each) => each.textContent);
          return {step: Number(at.dataset.step), head: at.querySelector('h3').textContent,
                  from: at.querySelector('p').textContent, rows: rows.map(cell),
                  bytes: rows.map((row) => Number(row.cells[1].dataset.v)),
                  total: Number(at.querySelector('.total').dataset.total)};
        })()"""
    )
    return found


@pytest.mark.parametrize(("width", "theme"), VIEWS)
def test_all_is_drawn_and_nothing_is_wider_than_the_window(
    tab: Tab, report: Report, tmp_path: Path, width: int, theme: str
) -> None:
    steps = (TakenStep(90, 91, "in the planned graphs"), TakenStep(95, 91, "in the planned graphs"))
    tab.show(written(replace(report, history=steps), tmp_path), width, theme)
    assert tab.complaints == []
    assert tab.run("document.documentElement.scrollWidth") == width
    sizes = tab.run("[...document.querySelectorAll('.chart canvas')].map((c) => c.getBoundingClientRect().width)")
    assert len(sizes) == 3 and all(0.8 * width < size + 200 and size <= width for size in sizes)
    assert tab.run("document.querySelectorAll('.chart svg').length") == 0
    red, *_ = tab.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (red > 200) == (theme == "light")
    ink, *_ = tab.run("getComputedStyle(document.body).color.match(/\\d+/g).map(Number)")
    assert (ink > 200) == (theme == "dark")


@pytest.mark.parametrize("width", [500, 1280])
def test_pointing_at_the_peak_names_what_is_alive_there(tab: Tab, report: Report, page: Path, width: int) -> None:
    chosen = timeline_of(report)
    count, peak = len(chosen.schedule), chosen.peak_step
    tab.show(page, width, "light")
    tab.move_to(*place_of(tab, 1, count))
    assert shown(tab)["step"] == 1
    tab.move_to(*place_of(tab, peak, count))
    found = shown(tab)
    assert found["step"] == peak and found["total"] == sum(found["bytes"]) == report.plan.peak_bytes
    op = chosen.peak_op
    assert op is not None and found["head"].startswith(op.name) and "the peak" in found["head"]
    assert f"step {peak + 1} of {count}, backward" in found["from"] and op.module_path in found["from"]

    tab.run("document.querySelector('.at .rest button')?.click()")
    rows = shown(tab)["rows"]
    names = sorted(row[0] for row in rows)
    values, resident = chosen.table.values, report.plan.resident_bytes
    alive = [values[value] for value, _ in chosen.alive_at(peak) if values[value].bytes]
    extra = ["generator states"] * bool(chosen.state_bytes[peak]) + ["workspace"] * bool(op.workspace_bytes)
    kinds = ["beside the model" if kind == "other" else kind for kind, size in resident.items() if size]
    assert names == sorted([value.name for value in alive] + extra + kinds)
    assert shown(tab)["total"] == sum(shown(tab)["bytes"]) == report.plan.peak_bytes
    modules = {row[0]: row[3] for row in rows}
    assert all(modules[value.name] == chosen.table.ops[value.maker].module_path for value in alive)
    assert {row[5] for row in rows} - {"", "runs once"}, "nothing says what making it again takes"


def test_every_step_of_every_plan_adds_up_to_the_simulators_bytes(tab: Tab, report: Report, page: Path) -> None:
    tab.show(page, 1280, "light")
    sums = tab.run(
        """data.graphs[0].plans.map((plan) => {
          const steps = new Steps(data.graphs[0], plan, null);
          return steps.total.map((_, step) => steps.rows(step).reduce((sum, row) => sum + row.bytes, 0));
        })"""
    )
    resident = sum(report.plan.resident_bytes.values())
    for timeline, shown_bytes in zip(report.graphs[0].timelines, sums, strict=True):
        assert shown_bytes == [resident + size for size in timeline.total_bytes]
    assert any(timeline_of(report, "minimum").state_bytes) and len({*timeline_of(report, "minimum").state_bytes}) > 1


def seconds_to_make(timeline: GraphTimeline, value: int, alive: set[int]) -> float | None:
    """As the page says: of all ops that would run to have the value, were it not there."""
    table, needed = timeline.table, set()

    def need(wanted: int) -> None:
        maker = table.values[wanted].maker
        if maker not in needed:
            needed.add(maker)
            for read in table.ops[maker].inputs:
                if table.values[read].maker >= 0 and (read == value or read not in alive):
                    need(read)

    need(value)
    if not all(table.ops[op].recomputable for op in needed):
        return None
    return sum(table.ops[op].seconds for op in needed)


def test_making_a_value_again_takes_what_its_missing_ops_take(tab: Tab, report: Report, page: Path) -> None:
    tab.show(page, 1280, "light")
    chosen = timeline_of(report)
    alive = {value for value, _ in chosen.alive_at(chosen.peak_step)}
    found = tab.run(
        f"""(() => {{
          const steps = new Steps(data.graphs[0], data.graphs[0].plans[1], null);
          const alive = steps.aliveAt({chosen.peak_step});
          return [...alive.keys()].map((value) => [value, steps.secondsToMake(value, alive)]);
        }})()"""
    )
    expected = {value: seconds_to_make(chosen, value, alive) for value in alive}
    assert dict(found) == {value: pytest.approx(seconds) for value, seconds in expected.items()}
    deep = [
        value
        for value, seconds in expected.items()
        if seconds and seconds > chosen.table.ops[chosen.table.values[value].maker].seconds
    ]
    assert deep, "each is made from what is alive: nothing to see"


def test_keys_go_from_step_to_step_and_hold_what_is_shown(tab: Tab, report: Report, page: Path) -> None:
    chosen = timeline_of(report)
    count = len(chosen.schedule)
    tab.show(page, 1280, "light")
    tab.run("document.querySelector('.timeline').focus()")
    for key, step in [("Home", 0), ("ArrowLeft", 0), ("ArrowRight", 1), ("End", count - 1), ("p", chosen.peak_step)]:
        tab.press(key)
        assert shown(tab)["step"] == step, key
    tab.move_to(*place_of(tab, 3, count))
    assert shown(tab)["step"] == chosen.peak_step, "a held step stays"
    tab.press("Escape")
    tab.move_to(*place_of(tab, 2, count))
    assert shown(tab)["step"] == 2
    tab.click(*place_of(tab, 4, count))
    tab.move_to(*place_of(tab, 2, count))
    assert shown(tab)["step"] == 4


def test_a_drag_zooms_and_a_key_shows_the_whole_step_again(tab: Tab, report: Report, page: Path) -> None:
    count = len(timeline_of(report).schedule)
    tab.show(page, 1280, "light")
    (left, y), (right, _) = place_of(tab, 0, count), place_of(tab, count - 1, count)
    (x, _), (to_x, _) = place_of(tab, 10, count), place_of(tab, 20, count)
    tab.drag(x, y, to_x)
    seen = []
    for place in (left, right):
        tab.move_to(place, y)
        seen.append(shown(tab)["step"])
    assert seen[0] in (10, 11) and seen[1] in (19, 20)
    tab.run("document.querySelector('.timeline').focus()")
    for keys, least in (("+", 2), ("-", 8), ("0", count - 2)):
        tab.press(keys)
        tab.move_to(left, y)
        first = shown(tab)["step"]
        tab.move_to(right, y)
        assert least <= shown(tab)["step"] - first <= 2.5 * least + 2, keys


def test_another_plan_and_time_across(tab: Tab, report: Report, page: Path) -> None:
    eager = timeline_of(report, "eager")
    tab.show(page, 1280, "dark")
    tab.run("document.querySelector('[data-plan=\"0\"]').click()")
    found = shown(tab)
    assert found["step"] == eager.peak_step and found["total"] == report.plan.eager_peak_bytes
    tab.run("document.querySelector('[data-across=time]').click()")
    pressed = "[...document.querySelectorAll('.controls [aria-checked=true]')].map((each) => each.textContent)"
    assert tab.run(pressed) == ["eager", "time"]
    for kind in ("in", "in", "out", "all", "peak"):
        tab.run(f"document.querySelector('[data-do={kind}]').click()")
    assert shown(tab)["step"] == eager.peak_step and tab.complaints == []


def test_checkpoints_are_sorted_and_filtered(tab: Tab, tmp_path: Path) -> None:
    tab.show(written(make_report(blocks=12, measured=False), tmp_path), 1280, "light")
    rows = "[...document.querySelectorAll('.checkpoints tbody tr')]"
    names = f"{rows}.filter((row) => !row.hidden).map((row) => row.cells[0].textContent)"
    assert tab.run(names)[:2] == ["add_0", "add_1"]
    tab.run("document.querySelectorAll('.checkpoints th')[1].focus()")
    tab.press("Enter")
    assert tab.run(names)[:2] == ["add_11", "add_10"]
    tab.run("document.querySelector('.filter input').focus()")
    tab.ask("Input.insertText", text="gpt2.py:103")
    assert tab.run(names) == ["add_3"]
    assert tab.run("document.querySelector('.filter output').textContent") == "1 of 12"


def test_modules_fold_and_the_theme_is_switched(tab: Tab, page: Path) -> None:
    tab.show(page, 500, "light")
    height = "document.querySelector('.tree').getBoundingClientRect().height"
    before = tab.run(height)
    tab.run("document.querySelector('.tree summary').focus()")
    tab.press("Enter")
    assert tab.run(height) < before
    background = "getComputedStyle(document.body).backgroundColor"
    light = tab.run(background)
    for name in ("light", "dark"):
        tab.run("document.querySelector('#theme').click()")
        assert tab.run("document.querySelector('#theme').textContent") == f"theme: {name}"
    assert tab.run(background) != light


def test_a_step_ends_with_the_update(tab: Tab, report: Report, tmp_path: Path) -> None:
    tail = {"gradients": 6 * MIB, "update workspace": MIB}
    tab.show(written(replace(report, step=StepFigures(2, 32, 0.1, tail)), tmp_path), 1280, "light")
    tab.run("document.querySelector('.timeline').focus()")
    tab.press("End")
    found = shown(tab)
    assert found["head"].startswith("the optimizer\u2019s update") and "the peak" in found["head"]
    assert found["total"] == sum(report.plan.resident_bytes.values()) + 7 * MIB


def test_text_that_would_be_markup_runs_nothing(tab: Tab, tmp_path: Path) -> None:
    tab.show(written(hostile_report(), tmp_path), 1280, "light")
    tab.run("document.querySelector('.at .rest button')?.click()")
    assert tab.complaints == [] and tab.run("document.querySelectorAll('script').length") == 2
    assert "<script>alert(1)</script>" in tab.run("document.querySelector('.at').textContent")


def test_the_sweep_has_its_curve(tab: Tab, tmp_path: Path) -> None:
    points = [(3 * MIB, 0.4, "search"), (5 * MIB, 0.1, "chain"), (8 * MIB, 0.0, "none")]
    (tmp_path / "sweep.html").write_text(sweep_html("Model", points, 8 * MIB), encoding="utf-8")
    tab.show(tmp_path / "sweep.html", 500, "dark")
    assert tab.complaints == [] and tab.run("document.documentElement.scrollWidth") == 500
    box = tab.run("JSON.parse(JSON.stringify(document.querySelector('.u-over').getBoundingClientRect()))")
    x = box["x"] + box["width"] * (5 - 3 + 0.2) / (5 * 1.08)
    y = box["y"] + box["height"] * (1 - (0.1 + 0.03 * 0.4) / (0.4 * 1.13))
    tab.move_to(x, y)
    assert tab.run("document.querySelector('.tip').textContent") == "5.0 MiB  +10.0%  chain"


def test_without_scripts_tables_and_drawings_are_there(tab: Tab, page: Path) -> None:
    tab.ask("Emulation.setScriptExecutionDisabled", value=True)
    try:
        tab.show(page, 500, "light")
        assert tab.run("document.querySelectorAll('.chart svg').length") == 2
        assert tab.run("document.querySelector('.controls').getBoundingClientRect().height") == 0
        assert tab.run("document.documentElement.scrollWidth") == 500
        assert tab.run("document.querySelectorAll('.checkpoints tbody tr').length") > 0
    finally:
        tab.ask("Emulation.setScriptExecutionDisabled", value=False)

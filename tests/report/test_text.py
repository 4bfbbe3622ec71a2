"""The report in a terminal."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from graphopt.report.chart import curve, sparkline, timeline
from graphopt.report.data import Report
from graphopt.report.figures import counted, fold, op_kind
from graphopt.report.html import render_html
from graphopt.report.text import MOST_ROWS, render_text
from tests.support.plans import MIB, hostile_report, make_report


def test_it_says_what_matters() -> None:
    text = str(make_report())
    for figure in ("FITS", "150.0 MiB", "139.0 MiB", "139.1 MiB", "301.0 MiB", "+23.5%", "+19.0%", "113.0 MiB"):
        assert figure in text
    for row in ("parameters", "optimizer", "activations", "gradients", "workspace", "eager", "sqrt_n", "minimum"):
        assert re.search(rf"^ *.*\b{row}\b", text, re.MULTILINE)
    assert re.search(r"sqrt_n +does not fit", text)
    assert re.search(r"add_1 +2.0 MiB +4: gelu ×2, native_layer_norm, addmm +1.1 ms +transformer.h.1.mlp\n", text)
    assert re.search(r"\n 4×256×256 f32 +gpt2.py:101 in forward\n", text)
    assert "The peak is at mm_12, gpt2.py:77 in forward" in text
    assert "Graphs" not in text


def test_it_says_how_far_the_optimum_may_be() -> None:
    report = make_report()
    assert "at most 3.7% above the optimum: no plan inside the budget takes less than +19.0%" in str(report)
    graph = replace(report.plan.graphs[0], bound_seconds=report.plan.graphs[0].seconds / (1 + 1e-12))
    assert "proven optimal inside the budget" in str(replace(report, plan=replace(report.plan, graphs=(graph,))))


def test_predicted_and_measured_stand_side_by_side() -> None:
    assert re.search(r"total +139.0 MiB +139.1 MiB", str(make_report()))
    assert re.search(r"total +139.0 MiB +not run", str(make_report(measured=False)))


def test_what_was_measured_decides_whether_it_fits() -> None:
    report = make_report()
    assert report.measured is not None
    over = replace(report, measured=replace(report.measured, peak_bytes=151 * MIB))
    assert "DOES NOT FIT" in str(over)
    assert "DOES NOT FIT" not in str(replace(over, measured=None))


def test_what_runs_between_graphs_is_not_said_to_fit() -> None:
    report = make_report(measured=False)
    pieces = replace(report, graphs=tuple(replace(each, break_reason="a loop") for each in report.graphs))
    assert "FITS AS FAR AS IT IS CAPTURED" in str(pieces) and "FITS AS FAR AS IT IS CAPTURED" in render_html(pieces)
    assert "FITS AS FAR" not in str(report)
    assert "FITS AS FAR" not in str(replace(pieces, measured=make_report().measured))


@pytest.mark.parametrize("width", [100, 110, 120])
@pytest.mark.parametrize("report", [make_report(2, 30), hostile_report()], ids=["long", "hostile"])
def test_no_line_is_too_wide_and_nothing_steers_the_terminal(report: Report, width: int) -> None:
    text = render_text(report, width)
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text


def test_what_is_held_in_reserve_counts_on_both_sides() -> None:
    report = make_report()
    resident = {**report.plan.resident_bytes, "reserve": 11 * MIB}
    report = replace(report, plan=replace(report.plan, resident_bytes=resident))
    assert "DOES NOT FIT" in str(report) and "measured peak 150.1 MiB" in str(report)


def test_colours_only_on_request() -> None:
    assert "\x1b[" in render_text(make_report(), color=True)


def test_a_long_table_is_cut_and_says_so() -> None:
    text = str(make_report(blocks=MOST_ROWS + 9))
    assert len(re.findall(r"gpt2.py:1\d\d", text)) == MOST_ROWS
    assert "… 9 smaller checkpoints left out here; all are in --html and --json" in text


def test_several_graphs_say_why_they_end() -> None:
    text = str(make_report(graphs=3))
    assert re.search(r"graph 2 +33% +78.0 MiB +240.0 MiB +print\(\) at train.py:7", text)


def test_an_empty_plan_still_has_a_report() -> None:
    report = make_report()
    bare = replace(report.graphs[0], timelines=(), comparisons=(), curve=())
    assert "Checkpoints" in str(replace(report, graphs=(bare,)))
    assert "GPT2" in str(replace(report, plan=replace(report.plan, graphs=()), graphs=()))


def test_the_timeline_reaches_eagers_peak_and_marks_budget_and_boundary() -> None:
    report = make_report()
    lines = timeline(report, report.graphs[0], width=100)
    assert lines[0].lstrip().startswith("301.0 MiB") and "░" in lines[0]
    assert any("150.0 MiB ┤╌" in line for line in lines)
    assert "┴" in lines[-3] and "forward" in lines[-2] and "backward" in lines[-2]
    far = replace(report, plan=replace(report.plan, budget_bytes=2**40))
    assert "(the budget, 1.0 TiB, is above)" in timeline(far, far.graphs[0])[-1]


def test_folding_keeps_peaks_and_lines_up_the_boundary() -> None:
    assert fold([1, 9, 2, 3, 8, 1], 3, 4, 2) == [9, 2, 3, 8] or max(fold([1, 9, 2, 3, 8, 1], 3, 4, 2)) == 9
    assert fold([5], 1, 4, 2) == [5, 5, 0, 0]
    assert len(fold(list(range(1000)), 300, 77, 30)) == 77


def test_curves_and_sparklines() -> None:
    drawn = "\n".join(curve([(MIB, 0.5), (2 * MIB, 0.1), (4 * MIB, 0.0)], chosen=2 * MIB))
    assert drawn.count("●") == 2 and drawn.count("◆") == 1 and "+50.0%" in drawn and "4.0 MiB" in drawn
    assert curve([]) == [] and len(curve([(5, 0.0)])) == 14
    assert sparkline([3, 2, 1]) == "█▅▁" and sparkline([1, 1]) == "▁▁" and sparkline([]) == ""


def test_names_of_ops() -> None:
    assert op_kind("aten.native_layer_norm.default") == op_kind("native_layer_norm_3") == "native_layer_norm"
    assert counted(["mm", "mm_1", "gelu", "a", "b"], most=2) == "5: mm ×2, gelu, …"

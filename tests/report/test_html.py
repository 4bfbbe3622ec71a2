"""The report as a page, and as data."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from graphopt.base.errors import UsageError
from graphopt.report.data import Report, StepFigures, TakenStep
from graphopt.report.html import labelled, render_html
from graphopt.report.json import report_to_json
from graphopt.report.page_data import page_data
from tests.support.plans import MIB, hostile_report, make_report, make_timeline

_VOID = {"meta", "link", "img", "br", "input", "line", "path", "circle", "rect"}


class _Reader(HTMLParser):
    """Checks that every element is closed in order, and collects what there is."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self.open.pop() == tag
        elif tag == "circle":
            pass


@pytest.mark.parametrize("report", [make_report(), make_report(3, 20, measured=False), hostile_report()])
def test_a_whole_page_that_loads_nothing(report: Report) -> None:
    page = render_html(report)
    reader = _Reader(page)
    assert reader.tags.count("script") == 2  # what is drawn, and what draws it
    assert not {"link", "img", "iframe", "object", "embed"} & set(reader.tags)
    assert not [a for a in reader.attributes if a[0] in ("src", "href", "xlink:href") or a[0].startswith("on")]
    own = page.replace("https://github.com/leeoniya/uPlot", "")  # the name of what is bundled
    assert "url(" not in page and "@import" not in page and "http://" not in own and "https://" not in own
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in html.unescape(page)


def test_text_is_escaped() -> None:
    assert "<script>alert" not in render_html(hostile_report())
    assert "&lt;script&gt;alert(1)" in render_html(hostile_report())


def test_it_holds_every_checkpoint_and_drawing() -> None:
    page = render_html(make_report(blocks=40))
    body, _, data = page.partition('<script type="application/json"')
    assert len(re.findall(r'<td class="code line">gpt2\.py:1\d\d in forward', body)) == 40
    assert body.count("<svg") == 2  # what stands there where no script runs
    assert '"name":"eager"' in data and '"name":"minimum"' in data


def test_what_is_alive_takes_room_by_the_step_and_not_by_step_and_value() -> None:
    report = make_report()

    def room(steps: int) -> int:
        timeline = make_timeline("chosen", 200 * MIB, steps)
        return len(json.dumps(page_data(replace(report, graphs=(replace(report.graphs[0], timelines=(timeline,)),)))))

    assert room(4000) - room(2000) < 1.2 * (room(2000) - room(0 + 2))


def test_a_steps_page_ends_with_the_update() -> None:
    figures = StepFigures(2, 8, 0.1, {"gradients": 6 * MIB, "update workspace": MIB})
    data = page_data(replace(make_report(), step=figures))
    assert data["tail"] == [["gradients", 6 * MIB], ["update workspace", MIB]]
    assert page_data(make_report())["tail"] is None


def test_words_that_only_we_know_are_not_shown() -> None:
    report = make_report()
    resident = {**report.plan.resident_bytes, "other": 512}
    report = replace(report, plan=replace(report.plan, resident_bytes=resident))
    for shown in (str(report), render_html(report), report._repr_html_()):
        words = re.sub(r"<(style|script).*?</\1>", "", shown, flags=re.DOTALL)
        assert "tangents" not in words and "costs" not in words and not re.search(r"\bother\s+512", words)
    assert "beside the model" in str(report) and "with operators timed on this device" in str(report)


def test_only_one_note_in_brackets_is_set_apart() -> None:
    rows = [
        ("a", "3 MiB (93%)"),
        ("b", "every x.size(0) (2 to 8), y (1 to 2)"),
        ("c", "+19% (3 rounds) now"),
        ("d", "4"),
    ]
    assert labelled(rows) == [
        ("a", "3 MiB", "93%"),
        ("b", "every x.size(0) (2 to 8), y (1 to 2)", ""),
        ("c", "+19% (3 rounds) now", ""),
        ("d", "4", ""),
    ]


def test_measured_steps_say_what_changed() -> None:
    steps = [TakenStep(130 * MIB, 129 * MIB, "in the planned graphs")] * 3
    steps += [TakenStep(130 * MIB, 152 * MIB, "in a loss"), *[TakenStep(139 * MIB, 138 * MIB, "in the graphs")] * 9]
    page = render_html(replace(make_report(), history=tuple(steps)))
    rows = re.findall(r'<tr><td class="n">(\d+)</td>.*?<td>([^<]*)</td><td>([^<]*)</td></tr>', page)
    assert rows == [
        ("1", "in the planned graphs", ""),
        ("4", "in a loss", "2,097,152 bytes over the budget"),
        ("5", "in the graphs", "planned anew: 130.0 MiB before"),
        ("13", "in the graphs", ""),
    ]
    assert "The last 13 steps were measured" in page and "Measured in training" not in render_html(make_report())


def test_a_report_is_saved_by_its_ending(tmp_path: Path) -> None:
    report = make_report()
    report.save(tmp_path / "report.html")
    report.save(str(tmp_path / "report.json"))
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == render_html(report)
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(json.dumps(report_to_json(report)))
    with pytest.raises(UsageError, match=r"NAME\.html, or as data, NAME\.json, not as 'report\.pdf'"):
        report.save("report.pdf")


def test_it_says_how_far_the_optimum_may_be() -> None:
    assert "at most 3.7% above the optimum: no plan inside the budget takes" in render_html(make_report())
    assert "at most 3.7% above the optimum of each graph&#39;s share" in render_html(make_report(graphs=2))


def test_light_and_dark() -> None:
    page = render_html(make_report())
    assert "color-scheme: light dark" in page and "light-dark(" in page and 'id="theme"' in page


def test_one_point_and_no_points_can_be_drawn() -> None:
    report = make_report()
    one = make_timeline("chosen", 20 * MIB, 2)
    for sizes in ((), (5,), (5, 5), (0, 1)):
        graph = replace(
            report.graphs[0],
            curve=tuple((size, 0.0, "none") for size in sizes),
            timelines=(one, replace(one, name="eager")),
        )
        for each in (graph, replace(graph, timelines=())):
            shown = replace(report, graphs=(each,))
            _Reader(render_html(shown)), _Reader(shown._repr_html_()), _Reader(shown.plan._repr_html_())


def test_the_data_is_all_there_and_is_json() -> None:
    report = make_report(graphs=2)
    data = json.loads(json.dumps(report_to_json(report), allow_nan=False))
    assert data["schema"] == "graphopt.report/1" and data["fits"] is True
    assert sum(data["breakdown"].values()) == report.plan.peak_bytes
    assert data["plan"]["graphs"][1]["checkpoints"][3]["module_path"] == "transformer.h.3.mlp"
    assert data["graphs"][0]["comparisons"][1] == {"name": "sqrt_n", "peak_bytes": None, "overhead": None}
    assert data["graphs"][0]["peak_op"] == "mm_12" and max(data["graphs"][0]["live_bytes"]) == 78 * MIB
    assert sum(data["graphs"][0]["peak_breakdown"].values()) == 78 * MIB
    assert data["graphs"][0]["curve"][0] == [52 * MIB, 0.61, "search"] and "curve" not in data["plan"]["graphs"][0]
    assert data["measured"]["time_ratio"] == 1.19
    assert data["bound_overhead"] == pytest.approx(0.19) and not data["proven_optimal"]
    assert data["above_optimum"] == pytest.approx(0.1234567890123456789 / 0.119 - 1)
    assert report_to_json(replace(report, measured=None))["measured"] is None

"""The report as a page, and as data."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from graphopt.report.data import Report
from graphopt.report.html import render_html
from graphopt.report.json import report_to_json
from tests.support.plans import MIB, hostile_report, make_report

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
    assert reader.tags.count("script") == 1
    assert not {"link", "img", "iframe", "object", "embed"} & set(reader.tags)
    assert not [a for a in reader.attributes if a[0] in ("src", "href", "xlink:href") or a[0].startswith("on")]
    assert "url(" not in page and "@import" not in page and "http://" not in page and "https://" not in page
    assert "default-src 'none'" in page


def test_text_is_escaped() -> None:
    assert "<script>alert" not in render_html(hostile_report())
    assert "&lt;script&gt;alert(1)" in render_html(hostile_report())


def test_it_holds_every_checkpoint_and_drawing() -> None:
    page = render_html(make_report(blocks=40))
    assert len(re.findall(r"gpt2\.py:1\d\d in forward", page)) == 40
    assert page.count("<svg") == 3
    series = json.loads(re.search(r'data-series="([^"]*)"', page)[1].replace("&quot;", '"'))  # type: ignore[index]
    assert len(series["chosen"]) == len(series["eager"])
    assert max(series["chosen"]) == make_report().plan.peak_bytes
    assert max(series["eager"]) == pytest.approx(make_report().plan.eager_peak_bytes, rel=0.02)


def test_it_says_how_far_the_optimum_may_be() -> None:
    assert "at most 3.7% above the optimum: no plan inside the budget takes" in render_html(make_report())
    assert "at most 3.7% above the optimum of each graph&#x27;s share" in render_html(make_report(graphs=2))


def test_light_and_dark() -> None:
    assert "prefers-color-scheme:dark" in render_html(make_report())


def test_one_point_and_no_points_can_be_drawn() -> None:
    report = make_report()
    for points in ((), ((5, 0.0),), ((5, 0.0), (5, 0.0)), ((0, 0.0), (1, 0.0))):
        graph = replace(report.graphs[0], curve=points, live_bytes=(0,), eager_live_bytes=(0,), boundary_step=0)
        _Reader(render_html(replace(report, graphs=(graph,))))


def test_the_data_is_all_there_and_is_json() -> None:
    report = make_report(graphs=2)
    data = json.loads(json.dumps(report_to_json(report), allow_nan=False))
    assert data["schema"] == "graphopt.report/1" and data["fits"] is True
    assert sum(data["breakdown"].values()) == report.plan.peak_bytes
    assert data["plan"]["graphs"][1]["checkpoints"][3]["module_path"] == "transformer.h.3.mlp"
    assert data["graphs"][0]["comparisons"][1] == {"name": "sqrt_n", "peak_bytes": None, "overhead": None}
    assert data["graphs"][0]["curve"][0] == [52 * MIB, 0.61] and "curve" not in data["plan"]["graphs"][0]
    assert data["measured"]["time_ratio"] == 1.19
    assert data["bound_overhead"] == pytest.approx(0.19) and not data["proven_optimal"]
    assert data["above_optimum"] == pytest.approx(0.1234567890123456789 / 0.119 - 1)
    assert report_to_json(replace(report, measured=None))["measured"] is None

"""What plans, reports and estimates are in a notebook and at a prompt."""

from __future__ import annotations

import re

import torch
from torch import nn

import graphopt
from graphopt.api.estimate import Estimate
from graphopt.base.glance import Drawing, Line, drawing_html, glance_html, stairs
from graphopt.report.module_tree import OUTSIDE, module_tree
from graphopt.run.watch.measured_step import MeasuredStep, Place
from tests.support.plans import MIB, hostile_report, make_plan, make_report, make_share

POINTS = ((3 * MIB, 0.4, "search"), (5 * MIB, 0.1, "chain"), (8 * MIB, 0.0, "none"))


def test_they_are_short_at_a_prompt() -> None:
    plan, report = make_plan(), make_report()
    assert repr(plan) == (
        "<Plan of GPT2LMHeadModel: 139.0 MiB of 150.0 MiB, +23.5% time; 6 checkpoints, 4 ops run again>"
    )
    assert repr(report) == f"<Report on {plan!r}>"
    assert repr(plan.graphs[0]).startswith("<GraphPlan 'graph 1': 78.0 MiB of its own, 104 steps, 6 checkpoints")
    assert repr(report.graphs[0]) == f"<GraphReport of {plan.graphs[0]!r}>"
    assert repr(report.graphs[0].timelines[1]) == f"<GraphTimeline 'chosen': 301 steps, {78 * MIB:,} bytes at step 151>"
    estimate = Estimate("GPT2", "cpu", POINTS, 9 * MIB, {})
    assert repr(estimate) == "<Estimate of GPT2 on cpu: from 3.0 MiB (+40.0% time) to 9.0 MiB, 3 plans>"
    step = MeasuredStep(3 * MIB, 4 * MIB, Place.LOSS, 0, 0)
    assert repr(step).startswith("<MeasuredStep: 4.0 MiB, 3.0 MiB planned, between the model's forward")


def test_they_are_a_table_and_a_drawing_in_a_notebook() -> None:
    for shown in (make_plan()._repr_html_(), make_report()._repr_html_(), hostile_report()._repr_html_()):
        assert shown.count("<svg") == 1 and shown.count("<table") == 1
        assert "<script" not in shown and not re.search(r"\son\w+=", shown) and "class=" not in shown
    assert "150.0 MiB" in make_plan()._repr_html_() and "+23.5%" in make_report()._repr_html_()
    assert make_plan(graphs=2)._repr_html_().count("<svg") == 0  # no curve is of both
    shown = Estimate("GPT2", "cpu", POINTS, 9 * MIB, {})._repr_html_()
    assert "3.0 MiB, +40.0% time" in shown and shown.count("<svg") == 1


def test_what_is_handed_out_by_optimize_shows_its_plan() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
    graphopt.optimize(model, "1GiB", cost_model="roofline")
    handle = model.graphopt
    assert repr(handle) == "<graphopt of Sequential: no plan yet>" and handle._repr_html_() is None
    model(torch.randn(4, 8)).sum().backward()
    assert repr(handle) == f"<graphopt of Sequential: {handle.plan!r}>" and "<svg" in (handle._repr_html_() or "")

    plain = nn.Linear(8, 1)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    step = graphopt.train_step(plain, nn.functional.mse_loss, optimizer, "1GiB", cost_model="roofline")
    assert repr(step) == "<TrainStep of Linear: no plan yet>" and step._repr_html_() is None
    step(torch.randn(4, 8), torch.randn(4, 1))
    assert repr(step) == f"<TrainStep of Linear: {step.plan!r}>" and "<svg" in (step._repr_html_() or "")


def test_lines_are_drawn_where_they_are() -> None:
    shown = drawing_html(Drawing((Line(((0, 0), (10, 4)), filled=True),), "rise", "left", "right", dots=((5, 2),)))
    assert (
        'd="M0.0 130.0L640.0 6.0L640.0 130L0.0 130Z" fill="currentColor"' in shown and 'cx="320.0" cy="68.0"' in shown
    )
    assert stairs([(0, 1), (2, 3), (5, 0)]) == ((0, 1), (2, 1), (2, 3), (5, 3), (5, 0))
    assert "&lt;b&gt;" in glance_html("<b>", [("<i>", "<u>")]) and "<b>" not in glance_html("<b>", [("<i>", "<u>")])


def test_modules_add_up_to_the_model() -> None:
    shares = [*(make_share(i) for i in range(3)), make_share(0).__class__("", 1.0, 7, 0, 0, 0, 0.0, 0, 0)]
    root = module_tree("GPT2", shares)
    assert (root.name, root.peak_bytes) == ("GPT2", 9 * MIB + 7)
    assert [child.name for child in root.children] == ["transformer", OUTSIDE]
    (blocks,) = root.children[0].children
    assert [block.path for block in blocks.children] == [f"transformer.h.{i}" for i in range(3)]
    assert blocks.peak_bytes == 9 * MIB and blocks.kept_bytes == 6 * MIB and blocks.recomputed == 8

"""What reports of real plans show: read out of them again, and held against the plans."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import graphopt
from graphopt.api import verify
from graphopt.api.optimize import plan_model
from graphopt.kernels.offload.link import DepotLink
from graphopt.plan.offload import where as depots
from graphopt.report.data import Report
from graphopt.report.figures import breakdown
from graphopt.report.html import render_html
from graphopt.report.json import report_to_json
from graphopt.report.sweep import sweep_html
from graphopt.report.timeline import kinds_at


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.drop = nn.Linear(32, 128), nn.Linear(128, 32), nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.drop(self.down(self.up(x).tanh().sin()))


class Model(nn.Module):
    """Its parts have the names that the wrappers of a step might have."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.step = nn.Sequential(*[Block() for _ in range(4)]), nn.ModuleDict({"model": Block()})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.step["model"](self.model(x))


def half_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output - target).square().mean().half()  # a training step makes it float again


BATCH = torch.randn(64, 32), torch.randn(64, 32)
BLOCKS = ("step.model", *(f"model.{i}" for i in range(4)))
PATHS = {f"{block}{part}" for block in BLOCKS for part in ("", ".up", ".down", ".drop")}


def planned(share: float = 0.3, batch: Any = BATCH, **options: Any) -> graphopt.api.optimized.Optimized:
    torch.manual_seed(0)
    curve = graphopt.estimate(Model(), batch, half_loss, cost_model="roofline")
    budget = int(curve.minimum_bytes + share * (curve.eager_peak_bytes - curve.minimum_bytes))
    return plan_model(Model(), batch, half_loss, mem_budget=budget, cost_model="roofline", **options)


def data_of(page: str) -> dict[str, Any]:
    """What the page's scripts draw."""
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    data: dict[str, Any] = json.loads(text)
    return data


def test_the_curve_shows_the_overheads_of_the_plan() -> None:
    optimized = planned()
    study, report = optimized.planned_graphs[0].study, optimized.report
    resident = sum(report.plan.resident_bytes.values())
    expected = [[resident + p.peak_bytes, p.seconds / study.eager.seconds - 1, p.planner] for p in study.curve]
    assert len(expected) > 3 and max(extra for _, extra, _ in expected) > 0.05, "nothing to see"
    page = render_html(report)
    (graph,) = data_of(page)["graphs"]
    curve = graph["curve"]
    assert curve["points"] == sorted(expected)
    assert curve["chosen"] == [report.plan.peak_bytes, pytest.approx(report.plan.overhead)]
    assert curve["bound"] == [report.plan.budget_bytes, pytest.approx(report.plan.bound_overhead)]
    ways = {name: extra for name, _, extra in curve["ways"]}
    assert ways["eager"] == 0.0 and ways["minimum"] == expected[0][1]
    rows = re.findall(r'<td class="n" data-v="(\d+)".*?<td class="n" data-v="[^"]*">([+-][\d.]+%)</td><td>(\w+)', page)
    assert rows == [(str(size), f"{round(extra, 3) + 0.0:+.1%}", name) for size, extra, name in sorted(expected)]
    shown = report_to_json(report)["graphs"][0]["curve"]
    assert shown == [[p.peak_bytes, p.seconds / study.eager.seconds - 1, p.planner] for p in study.curve]


def test_the_sweep_shows_the_same_curve_and_says_what_eager_is() -> None:
    found = graphopt.estimate(Model(), BATCH, half_loss, cost_model="roofline")
    page, text = sweep_html(found.model, found.points, found.eager_peak_bytes), str(found)
    assert data_of(page)["graphs"][0]["curve"]["points"] == sorted(map(list, found.points))
    for shown in (page, text):
        assert "as captured" in shown and "Eager: the captured graph as it was traced" in shown
    share = f"{found.points[0][0] / found.eager_peak_bytes:.0%}"
    assert re.search(rf"KiB +{share} ", text)
    assert repr(found).startswith("<Estimate of Model on cpu: from ") and "<svg" in found._repr_html_()


class Pieces(nn.Module):
    """Two graphs, with something between them that runs as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = Block(), Block()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.one(x)
        print(end="")
        return self.two(h).square().mean()


def assert_adds_up(report: Report) -> None:
    """What is shown of each step is what the simulator has there, and the highest of it is the plan's peak."""
    resident, plan = sum(report.plan.resident_bytes.values()), report.plan
    peaks = {"eager": plan.eager_peak_bytes, "chosen": plan.peak_bytes, "minimum": plan.minimum_bytes}
    for name, peak_bytes in peaks.items():
        timelines = [timeline for graph in report.graphs if (timeline := graph.timeline(name))]
        assert resident + max(timeline.peak_bytes for timeline in timelines) == peak_bytes
        for timeline in timelines:
            for step in range(len(timeline.schedule)):
                assert sum(kinds_at(timeline, step).values()) == timeline.live_bytes[step]
    assert sum(size for _, size in breakdown(report)) == plan.peak_bytes


def test_what_is_alive_at_each_step_adds_up_to_what_the_simulator_has_there() -> None:
    # masks of dropout take more than the state to draw them again
    optimized = planned(share=0.1, batch=(torch.randn(1024, 32), torch.randn(1024, 32)))
    report, (graph,) = optimized.report, optimized.planned_graphs
    assert_adds_up(report)
    chosen, least = report.graphs[0].timeline("chosen"), report.graphs[0].timeline("minimum")
    simulated = graph.study.simulated(graph.schedule)
    assert chosen is not None and chosen.live_bytes == tuple(simulated.live_bytes.tolist())
    assert chosen.peak_step == simulated.peak_step
    assert least is not None and max(chosen.state_bytes + least.state_bytes), "no dropout runs again: nothing to see"
    shares = report.plan.graphs[0].modules
    own = {op.name for op in chosen.table.ops}
    assert sum(share.recomputed for share in shares) == len(report.plan.recomputed) and own >= {*report.plan.recomputed}
    assert sum(share.kept for share in shares) == len(report.plan.checkpoints)
    assert sum(share.kept_bytes for share in shares) == sum(c.bytes for c in report.plan.checkpoints)
    states = chosen.state_bytes[chosen.peak_step]
    assert sum(share.peak_bytes for share in shares) == report.plan.graphs[0].peak_bytes - states
    seconds = math.fsum(share.seconds + share.again_seconds for share in shares)
    assert seconds == pytest.approx(report.plan.graphs[0].seconds)
    assert {share.path for share in shares} <= {*PATHS, "", "loss_fn"}


def test_graphs_that_run_together_count_what_the_others_hold() -> None:
    report = plan_model(Pieces(), BATCH[:1], mem_budget="1GiB", cost_model="roofline").report
    assert len(report.graphs) == 2
    assert_adds_up(report)
    beside = [timeline.beside_bytes for graph in report.graphs if (timeline := graph.timeline("chosen"))]
    assert beside[0][0] == 0 < beside[0][1] and beside[1][0] == beside[1][1] > 0


def test_values_that_are_moved_are_told_from_those_that_are_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(depots, "measure_link", lambda *_: DepotLink(1e11, 1e11, 1e-7))
    report = planned(0.05, offload=str(tmp_path)).report
    assert report.plan.fetched
    assert_adds_up(report)
    chosen = report.graphs[0].timeline("chosen")
    assert chosen is not None
    kinds = {kind for step in range(len(chosen.schedule)) for _, kind in chosen.alive_at(step)}
    assert "fetched" in kinds
    assert sum(share.fetched for share in report.plan.graphs[0].modules) == len(report.plan.fetched)


def shown_by(report: Report, plan: Path) -> dict[str, str]:
    report.plan.save(plan)
    data = json.dumps(report_to_json(report))
    return {"text": str(report), "page": render_html(report), "json": data, "plan": plan.read_text()}


def assert_users_own(report: Report, shown: dict[str, str], paths: set[str]) -> None:
    for where, text in shown.items():
        assert "_graphopt_" not in text and "loss_module" not in text and "step/module" not in text, where
    found = {c.module_path for graph in report.plan.graphs for c in graph.checkpoints}
    assert found <= paths | {"", "loss_fn"}, found
    assert len(found & paths) > 3
    sources = {c.source.partition(":")[0] for graph in report.plan.graphs for c in graph.checkpoints}
    assert sources <= {__file__, ""}, sources


@pytest.mark.parametrize("loss", [half_loss, None], ids=["loss", "no loss"])
def test_paths_and_lines_are_the_users_own(loss: Callable[..., Any] | None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    batch = BATCH if loss else BATCH[:1]
    report = plan_model(Model(), batch, loss, mem_budget="1GiB", cost_model="roofline").report
    assert_users_own(report, shown_by(report, tmp_path / "plan.json"), PATHS)


@pytest.mark.parametrize("loss", [half_loss, nn.MSELoss()], ids=["function", "module"])
def test_a_training_steps_paths_and_lines_are_the_users_own(loss: Callable[..., Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = graphopt.train_step(
        model, loss, optimizer, "1GiB", accumulate=2, example_inputs=BATCH, cost_model="roofline"
    )
    assert_users_own(step.report, shown_by(step.report, tmp_path / "plan.json"), PATHS)


def test_where_an_op_could_not_be_measured_is_the_users_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from graphopt.cost_models import profiled

    run = profiled.runnable
    unknown = ("aten.sin.default", "aten.mean.default", "aten._to_copy.default")
    monkeypatch.setattr(profiled, "runnable", lambda call: None if str(call.target) in unknown else run(call))
    monkeypatch.setattr(profiled, "_TABLES", {})
    monkeypatch.setattr(profiled, "_read_costs", lambda _where: {})
    monkeypatch.setattr(profiled, "_write_costs", lambda _where, _costs: None)
    with pytest.warns(
        UserWarning, match=r"ops could not be measured, first sin at .*test_real_plans.py:\d+ in forward"
    ):
        plan_model(Model(), BATCH, half_loss, mem_budget="1GiB", cost_model="profiled")


def test_names_and_errors_are_the_users_own() -> None:
    class Breaks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(32, 32)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.layer(x)
            print(end="")
            return self.layer(h).square().mean()

    report = plan_model(Breaks(), BATCH[:1], mem_budget="1GiB", cost_model="roofline").report
    assert report.graphs[0].break_reason.endswith("in forward") and __file__ in report.graphs[0].break_reason
    with pytest.raises(graphopt.CaptureError, match=r"'layer\.weight' is on cpu; 'layer\.bias' is on meta"):
        model = Breaks()
        model.layer.bias = nn.Parameter(torch.randn(32, device="meta"))
        plan_model(model, BATCH[:1], mem_budget="1GiB")
    with pytest.raises(graphopt.CaptureError) as caught:
        step_of(Breaks())
    assert "loss_module" not in str(caught.value) and "_graphopt_" not in str(caught.value)
    assert __file__ in str(caught.value)


def step_of(model: nn.Module) -> Any:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return graphopt.train_step(model, None, optimizer, "1GiB", example_inputs=BATCH[:1], cost_model="roofline")


def test_verify_shows_eager_measured_and_captured_and_the_spread_of_times() -> None:
    torch.manual_seed(0)
    report = verify.verify_model(Model(), BATCH, half_loss, mem_budget="1GiB", cost_model="roofline").report
    measured = report.measured
    assert measured is not None and measured.time_ratio is not None and measured.time_quartiles is not None
    lower, upper = measured.time_quartiles
    assert lower <= measured.time_ratio <= upper and measured.time_rounds == 3
    text = " ".join(str(report).split())
    signed = [f"{round(ratio - 1, 3) + 0.0:+.1%}" for ratio in (measured.time_ratio, lower, upper)]
    assert "measured time {} (quartiles {} to {}, 3 rounds)".format(*signed) in text
    assert re.search(r"eager peak [\d.]+ KiB \(measured; [\d.]+ KiB as captured\)", text)
    assert "nothing recomputed; measured: the model as it is" in text
    unmeasured = " ".join(str(planned().report).split())
    assert (
        re.search(r"eager peak [\d.]+ KiB \(as captured\)", unmeasured) and "`graphopt verify` measures" in unmeasured
    )


@pytest.mark.fast(1)
@pytest.mark.parametrize(
    ("how", "cause"),
    [
        ("autocast", "autocast on cpu is on, with bfloat16, and was off for the example"),
        ("shape", r"tensor 'args\[0\]' size mismatch at index 0. expected 64, actual 4"),
        ("dtype", "tensor 'model.* dtype mismatch. expected Float, actual Double"),
        ("frozen", "tensor 'model.model.0.up.weight' requires_grad mismatch"),
        ("mode", "it is no longer so that model.model.1.drop.training == True"),
    ],
)
def test_a_first_call_unlike_the_example_says_what_differs(how: str, cause: str) -> None:
    model, x = Model(), BATCH[0]
    graphopt.optimize(model, "1GiB", example_inputs=x, cost_model="roofline")
    if how == "frozen":
        model.model[0].up.weight.requires_grad_(False)
    if how == "mode":
        model.model[1].drop.eval()
    model, x = (model.double(), x.double()) if how == "dtype" else (model, x[:4] if how == "shape" else x)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast")
    with pytest.warns(UserWarning, match=f"captured and planned anew: {cause}"), autocast:
        model(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(x[:3])  # only the first call is held against the example


def test_a_first_call_like_the_example_says_nothing() -> None:
    model = Model()
    graphopt.optimize(model, "1GiB", example_inputs=BATCH[0], cost_model="roofline")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.eval()(BATCH[0][:7])
        model.train()(BATCH[0]).sum().backward()

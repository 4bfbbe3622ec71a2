"""What reports of real plans show: read out of them again, and held against the plans."""

from __future__ import annotations

import json
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
from graphopt.report.data import Report
from graphopt.report.html import render_html
from graphopt.report.json import report_to_json
from graphopt.report.sweep import sweep_html


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


def planned(share: float = 0.3, loss: Callable[..., Any] | None = half_loss) -> graphopt.api.optimized.Optimized:
    torch.manual_seed(0)
    curve = graphopt.estimate(Model(), BATCH, loss, cost_model="roofline")
    budget = int(curve.minimum_bytes + share * (curve.eager_peak_bytes - curve.minimum_bytes))
    return plan_model(Model(), BATCH, loss, mem_budget=budget, cost_model="roofline")


def dots(page: str, kind: str) -> list[tuple[float, float, str]]:
    """Place of each dot of a curve in the page's own axes, bytes and fraction, as the labels have them; its title."""
    (drawing,) = re.findall(r'<svg class="pareto".*?</svg>', page, re.DOTALL)
    number = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
    right = re.findall(r'text-anchor="end" x="[^"]*" y="([^"]*)">([^<]*)%<', drawing)
    below = re.findall(r'text-anchor="middle" x="([^"]*)" y="[^"]*">([\d.]+) (\w+)<', drawing)
    heights = [(float(y) - 4, float(text) / 100) for y, text in right]
    widths = [(float(x), float(text) * number[unit]) for x, text, unit in below]
    found = re.findall(rf'class="{kind}" r="\d+" cx="([^"]*)" cy="([^"]*)"><title>([^<]*)<', drawing)
    return [(_on(widths, float(x)), _on(heights, float(y)), title) for x, y, title in found]


def _on(ticks: list[tuple[float, float]], place: float) -> float:
    (a, low), *_, (b, high) = ticks
    return low + (place - a) / (b - a) * (high - low)


def test_the_curve_shows_the_overheads_of_the_plan() -> None:
    optimized = planned()
    study, report = optimized.planned_graphs[0].study, optimized.report
    resident = sum(report.plan.resident_bytes.values())
    expected = [(resident + p.peak_bytes, p.seconds / study.eager.seconds - 1) for p in study.curve]
    assert len(expected) > 3 and max(extra for _, extra in expected) > 0.05, "nothing to see"
    shown = dots(render_html(report), "point")
    assert len(shown) == len(expected)
    most, widest = max(extra for _, extra in expected), max(size for size, _ in expected) - min(expected)[0]
    for (size, extra), (at_size, at_extra, title) in zip(sorted(expected), shown, strict=True):
        assert at_extra == pytest.approx(extra, abs=0.02 * most)
        assert at_size == pytest.approx(size, abs=0.06 * widest)  # the labels have two digits
        assert title.endswith(f"{round(extra, 3) + 0.0:+.1%}")
    ((_, at_extra, title),) = dots(render_html(report), "point mark")
    assert at_extra == pytest.approx(report.plan.overhead, abs=0.02 * most)
    assert title.endswith(f"{round(report.plan.overhead, 3) + 0.0:+.1%}")
    curve = report_to_json(report)["graphs"][0]["curve"]
    assert [extra for _, extra in curve] == pytest.approx([p.seconds / study.eager.seconds - 1 for p in study.curve])


def test_the_sweep_shows_the_same_curve_and_says_what_eager_is() -> None:
    found = graphopt.estimate(Model(), BATCH, half_loss, cost_model="roofline")
    page, text = sweep_html(found.model, found.points, found.eager_peak_bytes), str(found)
    most = max(extra for _, extra, _ in found.points)
    for (_, extra, _), (_, at_extra, _) in zip(found.points, dots(page, "point"), strict=True):
        assert at_extra == pytest.approx(extra, abs=0.02 * most)
    for shown in (page, text):
        assert "as captured" in shown and "Eager: the captured graph as it was traced" in shown
    share = f"{found.points[0][0] / found.eager_peak_bytes:.0%}"
    assert re.search(rf"KiB +{share} ", text)


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

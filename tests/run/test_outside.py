"""What runs outside of the planned graphs: its share of seconds and bytes, and why, line by line."""

from __future__ import annotations

import inspect
import time
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

import graphopt
from graphopt.device.measure import peak_bytes
from graphopt.report.html import render_html
from graphopt.report.json import report_to_json
from tests.run.test_frames_that_are_given_up import WAYS, Pieces, with_a_part_that_is_disabled
from tests.run.test_watch import Broken, broken, one_step
from tests.support.residual_blocks import blocks

#: What the loss of `Broken` takes, once: 256 rows of 4,096.
LOGITS = 256 * 4096 * 4


def trained(model: nn.Module, steps: int = 4) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in range(steps):
            broken(model, step)
    return model


def shown(model: nn.Module) -> str:
    return " ".join(str(model.graphopt.report).split())


def test_a_loss_outside_of_the_graphs_has_its_share() -> None:
    report = trained(graphopt.optimize(Broken(), "64MiB", cost_model="roofline")).graphopt.report
    outside = report.outside
    assert outside.steps == 4 and 0.1 < outside.seconds_share < 1
    # logits, their log-softmax, and its gradient or that of the logits
    assert 3 * LOGITS <= outside.bytes < 3 * LOGITS + 2**17
    assert outside.peak_bytes == report.trained.peak_bytes
    (found,) = report.breaks
    assert "disable" in found.reason and not found.given_up
    line = inspect.getsourcelines(Broken.forward)[1] + 1
    assert found.source == f"{inspect.getsourcefile(Broken)}:{line} in forward"


def test_a_model_in_one_graph_has_nothing_outside_but_the_loop() -> None:
    model, x = graphopt.optimize(blocks(), "64MiB", cost_model="roofline"), torch.randn(256, 64)
    for _ in range(3):
        one_step(model, x)
    report = model.graphopt.report
    assert report.breaks == ()
    # its loss is outside: it returns a square, which the gradient comes from
    assert report.outside.bytes <= 4 * 256 * 64 * 4
    assert report.outside.seconds_share < 0.9
    first, second, _ = model.graphopt.history
    assert first.seconds is None and 0 < second.seconds.in_graphs < second.seconds.whole


def test_time_between_forward_and_backward_is_outside() -> None:
    model, x = graphopt.optimize(blocks(1, 16), "64MiB", cost_model="roofline"), torch.randn(16, 16)
    for _ in range(3):
        model.zero_grad()
        loss = model(x).square().mean()
        time.sleep(0.1)
        loss.backward()
    seconds = model.graphopt.history[-1].seconds
    assert seconds.whole > 0.1 > seconds.in_graphs
    assert model.graphopt.report.outside.seconds_share > 0.5


def test_a_plan_of_pieces_says_so_before_any_training() -> None:
    x = torch.randn(256, 64)
    model = graphopt.optimize(Broken(), "64MiB", example_inputs=x, cost_model="roofline")
    report = model.graphopt.report
    assert report.outside.steps == 0 and 0 < report.outside.seconds_share < 1
    assert 2 * LOGITS <= report.outside.bytes <= report.outside.peak_bytes
    text = shown(model)
    assert "FITS AS FAR AS IT IS CAPTURED" in text
    assert "outside of the plan" in text and "of one forward alone" in text
    assert "is captured anew" in text and "test_watch.py" in text
    page, data = render_html(report), report_to_json(report)
    assert "Where captures ended" in page and "outside of the plan" in page
    assert data["outside"]["bytes"] == report.outside.bytes
    assert data["breaks"] == [{"reason": b.reason, "source": b.source, "given_up": ""} for b in report.breaks]
    trained(model)
    assert "(4 steps)" in shown(model)


@pytest.mark.parametrize("way", WAYS)
def test_a_function_that_is_given_up_is_named(way: Callable[..., torch.Tensor]) -> None:
    torch.manual_seed(0)
    model = graphopt.optimize(Pieces(way), "64MiB", example_inputs=torch.randn(256, 64), cost_model="roofline")
    breaks = model.graphopt.report.breaks
    lines = [f"{inspect.getsourcefile(way)}:" in each.source for each in breaks]
    assert lines and all(lines)
    given_up = [each.given_up for each in breaks if each.given_up]
    if way is with_a_part_that_is_disabled:
        assert not given_up
    else:
        (name,) = set(given_up)
        assert name.startswith(f"{way.__name__} ({inspect.getsourcefile(way)}:")
        assert f"runs as it is: all of {way.__name__}" in shown(model)
    assert "FITS AS FAR AS IT IS CAPTURED" in shown(model)
    assert "torch_dynamo_resume" not in shown(model)


class Eager(nn.Module):
    """A model of which nothing can be captured."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    @torch._dynamo.disable
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def test_where_nothing_is_captured_the_cause_is_told() -> None:
    with pytest.raises(graphopt.CaptureError, match=r"nothing of Eager could be captured:\n .*disable"):
        graphopt.optimize(Eager(), "1MiB", cost_model="roofline")(torch.randn(2, 4))


def test_a_plan_leaves_a_model_in_pieces_as_it_was() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.drop, self.last = nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.drop(self.norm(x))
            torch._dynamo.graph_break()
            return self.drop(self.last(x)).sum()

    model = Counts()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(3)
    graphopt.optimize(model, "1MiB", example_inputs=torch.ones(4, 8), cost_model="roofline")
    drawn = torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(3))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_is_kept_in_front_of_the_model_is_measured_named_and_planned_for() -> None:
    budget = 2_900_000
    front, model = blocks(4), blocks(4)
    x = torch.linspace(-1, 1, 128 * 64).reshape(128, 64)
    graphopt.optimize(model, budget, cost_model="roofline")

    def step_bytes() -> int:
        front.zero_grad(), model.zero_grad()
        return peak_bytes(lambda: model(front(x)).square().mean().backward(), [*model.parameters(), x], "cpu")

    with pytest.warns(UserWarning, match="are kept for the backward of what made the model's inputs") as told:
        assert step_bytes() > budget
        peaks = [step_bytes() for _ in range(3)]
    assert sum("graphopt" in str(each.message) for each in told) == 1
    assert max(peaks) <= budget
    assert [step.measured_bytes for step in model.graphopt.history][-2:] == peaks[-2:]

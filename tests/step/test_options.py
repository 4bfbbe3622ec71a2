"""Arguments of `train_step()` of a wrong kind are refused when the step is built, with the way to write them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn, optim
from torch.nn import functional as F
from torch.optim import lr_scheduler

import graphopt


def built(loss_fn: Any = F.mse_loss, make: Any = None, **options: Any) -> graphopt.TrainStep:
    model = nn.Linear(4, 4)
    optimizer = make(model.parameters()) if make else optim.SGD(model.parameters(), 0.1)
    return graphopt.train_step(model, loss_fn, optimizer, **options)


def plateau() -> Any:
    return lr_scheduler.ReduceLROnPlateau(optim.SGD([nn.Parameter(torch.zeros(1))], 0.1))


WRONG: list[tuple[str, Any, str]] = [
    ("loss_scale", 1024.0, r"graphopt\.ConstantLossScale\(1024\.0\).*DynamicLossScale\(initial=1024\.0\).*got 1024\.0"),
    ("loss_scale", "dynamic", r"graphopt\.DynamicLossScale\(.*got 'dynamic'"),
    ("loss_scale", torch.amp.GradScaler("cpu"), r"graphopt\.DynamicLossScale\(.*an object of GradScaler"),
    ("loss_scale", graphopt.DynamicLossScale, "the class DynamicLossScale"),
    ("clip", 0.5, r"graphopt\.ClipNorm\(0\.5\).*graphopt\.ClipValue\(0\.5\).*got 0\.5"),
    ("clip", True, r"graphopt\.ClipNorm\(1\.0\)"),
    ("clip", torch.tensor(1.0), "an object of Tensor"),
    ("clip", graphopt.ClipNorm, "the class ClipNorm"),
    ("autocast", "bf16", r"torch\.bfloat16, torch\.float16 or None, got 'bf16'"),
    ("autocast", True, r"torch\.bfloat16"),
    ("autocast", torch.float64, r"got torch\.float64"),
    ("weights", 3, "'rows', 'tokens' or a function"),
    ("weights", "words", "'rows', 'tokens' or a function"),
    ("accumulate", 2.0, "whole number of at least 1, or 'auto', got 2.0"),
    ("accumulate", True, "whole number"),
    ("accumulate", torch.tensor(2), "whole number"),
    ("compress", "topk", "a method such as TopK"),
    ("compress", graphopt.TopK, "the class TopK"),
    ("masters", "yes", "True or False, got 'yes'"),
    ("update_in_backward", None, "True, False or 'auto', got None"),
    ("lr_scheduler", True, r"StepLR\(optimizer, 10\), or None"),
    ("lr_scheduler", lr_scheduler.StepLR, "the class StepLR"),
    ("lr_scheduler", plateau(), "wants metrics: call it yourself"),
    ("planner", ["auto"], "the name of one"),
    ("cost_model", None, "the name of one, got None"),
    ("reserve", [1], "a number of bytes"),
    ("reserve", -5, "0 or more, got -5"),
    ("mem_budget", [1], "a number of bytes, such as '8GiB'"),
    ("mem_budget", True, "a number of bytes"),
    ("plan_seconds", "5", "a number of seconds, 0 or more, got '5'"),
    ("group", [0, 1], r"torch\.distributed\.new_group\(\[0, 1\]\)"),
    ("group", -100, "a process group that this process is in"),
    ("example_kwargs", [1], "a dict of keyword inputs"),
    ("example_kwargs", {1: 2}, "a dict of keyword inputs"),
    ("on_excess", "warn", "'correct' or 'raise'"),
    ("loss_fn", "mse", r"such as torch\.nn\.functional\.mse_loss"),
    ("loss_fn", nn.MSELoss, r"write MSELoss\(\)"),
]


@pytest.mark.parametrize(("name", "value", "said"), WRONG, ids=[f"{name}-{i}" for i, (name, *_) in enumerate(WRONG)])
def test_an_option_of_a_wrong_kind_is_refused_with_the_way_to_write_it(name: str, value: Any, said: str) -> None:
    with pytest.raises(graphopt.UsageError, match=f"^{name}: expected .*{said}"):
        built(**{name: value})


def test_options_of_the_right_kinds_are_taken() -> None:
    built(
        nn.MSELoss(),
        accumulate="auto",
        clip=graphopt.ClipValue(1.0),
        loss_scale=graphopt.ConstantLossScale(8.0),
        weights=lambda *_: 1.0,
        compress=graphopt.TopK(0.1),
        autocast=torch.float16,
        reserve="1KiB",
        plan_seconds=1,
    )
    built(lr_scheduler=lr_scheduler.StepLR(optim.SGD([nn.Parameter(torch.zeros(1))], 0.1), 1))


@pytest.mark.parametrize(("model", "said"), [(nn.Linear, "got the class Linear"), (3, "got 3")])
def test_what_is_no_model_is_refused(model: Any, said: str) -> None:
    with pytest.raises(graphopt.UsageError, match=f"takes an nn.Module, {said}"):
        graphopt.train_step(model, None, optim.SGD([nn.Parameter(torch.zeros(1))], 0.1))


def with_scheduler(parameters: Any) -> optim.Optimizer:
    optimizer = optim.AdamW(parameters)
    lr_scheduler.StepLR(optimizer, 1)  # it puts a function around the optimizer's step
    return optimizer


def test_an_optimizer_that_has_a_scheduler_is_taken() -> None:
    built(make=with_scheduler)


def test_an_optimizer_that_needs_a_closure_is_refused() -> None:
    with pytest.raises(graphopt.UsageError, match=r"LBFGS\.step\(\) wants closure"):
        built(make=optim.LBFGS)

"""The heed_overflow pass: a flag that the ranks agreed on skips the update everywhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx

from graphopt.graph.roles import DESCRIPTOR, Overflow, add_input
from graphopt.passes.run_passes import run_passes
from graphopt.passes.window import window_passes
from graphopt.passes.window.heed_overflow import heed_overflow
from graphopt.passes.window.loss_scale import ConstantLossScale, LossScale
from graphopt.passes.window.update import GroupUpdate
from tests.support.joint import edits, text_of
from tests.support.small_window import feeds, small_window

SGD = [GroupUpdate(0, "sgd", ("a", "b"), (("nesterov", False), ("maximize", False), ("first", True)))]
OPTIONS: dict[str, Any] = {"lr": 0.5, "momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0}


def updated(scale_by: LossScale | None, *, flag: bool = True) -> fx.GraphModule:
    window = small_window()
    if flag:
        add_input(window.graph, "overflow", Overflow())
    run_passes(window, window_passes(SGD, None, scale_by)[:-1])
    return window


def test_the_flag_alone_skips_where_there_is_no_loss_scale() -> None:
    window = updated(None)
    before = text_of(window.graph)
    update = before.splitlines()[-2].removesuffix(")")
    assert heed_overflow(window)
    assert edits(before, text_of(window.graph)) == [
        "+ maximum_default = maximum.default(overflow, overflow)",
        f"- {update})",
        f"+ {update}, found_inf=maximum_default)",
        "- return (sum_default, None, None, [])",
        "+ return (sum_default, None, maximum_default, [])",
    ]
    after = text_of(window.graph)
    assert not heed_overflow(window) and text_of(window.graph) == after


def test_flag_and_check_both_skip_where_there_is_a_loss_scale() -> None:
    window = updated(ConstantLossScale(8.0))
    before = text_of(window.graph)
    update = before.splitlines()[-2].removesuffix("getitem)")
    assert heed_overflow(window)
    assert edits(before, text_of(window.graph)) == [
        "+ maximum_default = maximum.default(getitem, overflow)",
        f"- {update}getitem)",
        f"+ {update}maximum_default)",
        "- return (sum_default, None, getitem, [])",
        "+ return (sum_default, None, maximum_default, [])",
    ]
    after = text_of(window.graph)
    assert not heed_overflow(window) and text_of(window.graph) == after


def test_without_a_flag_or_an_update_nothing_changes() -> None:
    for window in (updated(None, flag=False), small_window()):
        before = text_of(window.graph)
        assert not heed_overflow(window) and text_of(window.graph) == before


@pytest.mark.parametrize("flag", [0.0, 1.0])
def test_a_raised_flag_updates_nothing(flag: float) -> None:
    window = updated(None)
    heed_overflow(window)
    given = {name: torch.ones(3) for name in "abx"}
    arguments = feeds(window, given, OPTIONS)
    place = [node.meta[DESCRIPTOR] for node in window.graph.find_nodes(op="placeholder")].index(Overflow())
    arguments.insert(place, torch.tensor(flag))
    _, _, found_inf, _ = window(*arguments)
    assert float(found_inf) == flag
    assert torch.equal(given["a"], torch.ones(3)) is bool(flag)

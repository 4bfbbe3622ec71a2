"""Each rule for passes over a window finds the pass that breaks it, and a wrong order is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import fx

from graphopt.base.errors import PassError
from graphopt.graph.roles import ROLE, Norm, Tangent, Update, WindowGradient, set_outputs, with_role
from graphopt.passes.rules import (
    ANY_GRAPH,
    Still,
    draws_stay,
    graph_is_well_formed,
    inputs_stay,
    passes_say_whether_they_changed_it,
    writes_stay_in_order,
)
from graphopt.passes.run_passes import NamedPass, run_passes
from graphopt.passes.window import Passes, window_passes
from graphopt.passes.window.clip import ClipNorm, ClipValue
from graphopt.passes.window.contract import RULES, outputs_keep_their_places, roles_stay
from graphopt.passes.window.loss_scale import ConstantLossScale, DynamicLossScale
from graphopt.passes.window.update import GroupUpdate
from tests.support.small_window import small_window

aten = torch.ops.aten
FLAGS = (("nesterov", False), ("maximize", False), ("first", True))
SGD = [GroupUpdate(0, "sgd", ("a", "b"), FLAGS)]
NAMES = ["update", "clip", "loss_scale", "heed_overflow"]


def finished() -> fx.GraphModule:
    """A window that went through all passes."""
    window = small_window()
    assert run_passes(window, window_passes(SGD, ClipNorm(1.0), ConstantLossScale(8.0)))
    return window


def reverse_inputs(window: fx.GraphModule) -> bool:
    first, second, *_ = window.graph.find_nodes(op="placeholder")
    first.prepend(second)
    return True


def drop_update(window: fx.GraphModule) -> bool:
    window.graph.erase_node(next(with_role(window.graph, Update)))
    return True


def write_and_say_no(window: fx.GraphModule) -> bool:
    with window.graph.inserting_before(window.graph.output_node()):
        window.graph.call_function(aten.zero_.default, (window.graph.find_nodes(op="placeholder")[0],))
    return False


def draw(window: fx.GraphModule) -> bool:
    with window.graph.inserting_before(window.graph.output_node()):
        window.graph.call_function(aten.rand.default, ([3],))
    return True


def too_early(window: fx.GraphModule) -> bool:
    next(with_role(window.graph, WindowGradient)).prepend(next(with_role(window.graph, Update)))
    return True


def other_loss(window: fx.GraphModule) -> bool:
    set_outputs(window.graph, loss=next(with_role(window.graph, Norm)))
    return True


def no_norm(window: fx.GraphModule) -> bool:
    set_outputs(window.graph, norm=None)
    return True


def three_outputs(window: fx.GraphModule) -> bool:
    window.graph.output_node().args = (window.graph.output_node().args[0][:3],)  # type: ignore[index]
    return True


def forget_gradient(window: fx.GraphModule) -> bool:
    del next(with_role(window.graph, WindowGradient)).meta[ROLE]
    return True


def two_tangents(window: fx.GraphModule) -> bool:
    (tangent,) = with_role(window.graph, Tangent)
    next(with_role(window.graph, WindowGradient)).meta[ROLE] = tangent.meta[ROLE]
    return True


BROKEN: list[tuple[Callable[[fx.GraphModule], bool], Callable[[fx.GraphModule], Still], str]] = [
    (too_early, graph_is_well_formed, "used before it has been defined"),
    (reverse_inputs, inputs_stay, "inputs were a"),
    (drop_update, writes_stay_in_order, r"are \[\]"),
    (draw, draws_stay, r"draws were \[\]"),
    (write_and_say_no, passes_say_whether_they_changed_it, "it says False"),
    (other_loss, outputs_keep_their_places, "it returned"),
    (no_norm, outputs_keep_their_places, "it returned"),
    (three_outputs, outputs_keep_their_places, "it returned"),
    (drop_update, roles_stay, r"Update\(group=0\)"),
    (forget_gradient, roles_stay, r"WindowGradient\(parameter='a'\)"),
    (two_tangents, roles_stay, r"Tangent\(number=0\)"),
]


@pytest.mark.parametrize(("breaks", "rule", "what"), BROKEN, ids=lambda item: getattr(item, "__name__", None))
def test_a_rule_finds_what_breaks_it(
    breaks: Callable[[fx.GraphModule], bool], rule: Callable[[fx.GraphModule], Still], what: str
) -> None:
    window = finished()
    assert rule in RULES
    with pytest.raises(PassError, match=f"'{breaks.__name__}', after no other, failed: AssertionError: .*{what}"):
        run_passes(window, [NamedPass(breaks.__name__, breaks)], [rule])


def test_every_rule_is_broken_by_a_test() -> None:
    assert {rule for _, rule, _ in BROKEN} == set(RULES) > set(ANY_GRAPH)


@pytest.mark.parametrize("clip_by", [None, ClipNorm(1.0), ClipNorm(1.0, per_group=True), ClipValue(0.5)], ids=str)
@pytest.mark.parametrize("scale_by", [None, ConstantLossScale(8.0), DynamicLossScale(8.0)], ids=str)
def test_the_passes_of_a_window_keep_its_rules(clip_by: object, scale_by: object) -> None:
    passes = window_passes(SGD, clip_by, scale_by)  # type: ignore[arg-type]
    asked = {"update": True, "clip": clip_by, "loss_scale": scale_by, "heed_overflow": True}
    assert [each.name for each in passes] == [name for name in NAMES if asked[name]]
    window = small_window()
    assert run_passes(window, passes, RULES)
    assert not run_passes(window, (passes[0], passes[-1]), RULES)


UPDATE, CLIP, SCALE, HEED = window_passes(SGD, ClipNorm(1.0), ConstantLossScale(8.0))


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ((CLIP,), "pass 'clip', after no other, failed.*requires that gradients are used"),
        ((SCALE,), "pass 'loss_scale', after no other, failed.*requires that gradients are used"),
        ((HEED,), "pass 'heed_overflow', after no other, failed.*requires that gradients are used"),
        ((UPDATE, SCALE, CLIP), "'clip', after update .*, loss_scale .*requires that gradients are unscaled"),
        ((UPDATE, SCALE, SCALE), "'loss_scale', after update .*requires that updates are unconditional"),
    ],
)
def test_a_wrong_order_is_refused(wrong: Passes, what: str) -> None:
    with pytest.raises(PassError, match=what):
        run_passes(small_window(), wrong)


def test_an_update_that_forgets_a_parameter_is_refused() -> None:
    passes = window_passes([GroupUpdate(0, "sgd", ("a",), FLAGS)], None, None)
    with pytest.raises(PassError, match=r"'update', after no other, failed.*ensures that gradients are used"):
        run_passes(small_window(), passes)

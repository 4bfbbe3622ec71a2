"""Each rule for passes over joint graphs finds the pass that breaks it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from graphopt.base.errors import PassError
from graphopt.graph.joint import JointGraph
from graphopt.passes.joint.contract import (
    RULES,
    halves_stay_apart,
    outputs_keep_their_places,
    values_are_true,
    values_stay_known,
)
from graphopt.passes.rules import (
    Still,
    draws_stay,
    graph_is_well_formed,
    inputs_stay,
    passes_say_whether_they_changed_it,
    writes_stay_in_order,
)
from graphopt.passes.run_passes import NamedPass, run_passes
from tests.support.joint import joint_graph

aten = torch.ops.aten


class Everything(nn.Module):
    """A product, a draw, and a buffer that is written."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count.add_(1)
        return (nn.functional.dropout(x @ self.weight, 0.5) * self.count).t().sum(0)


def node(joint: JointGraph, name: str) -> torch.fx.Node:
    return next(node for node in joint.graph.nodes if node.name == name)


def insert(joint: JointGraph, behind: str, target: Callable[..., object], *args: object) -> torch.fx.Node:
    anchor = node(joint, behind)
    with joint.graph.inserting_after(anchor):
        made = joint.graph.call_function(target, args)  # type: ignore[arg-type]
    made.meta = {key: anchor.meta[key] for key in ("val", "partitioner_tag")}
    return made


def out_of_order(joint: JointGraph) -> bool:
    node(joint, "mm").prepend(node(joint, "mul"))
    return True


def stray_reader(joint: JointGraph) -> bool:
    node(joint, "mm").users[node(joint, "sum_1")] = None
    return True


def swap_inputs(joint: JointGraph) -> bool:
    joint.primals[0].prepend(joint.primals[1])
    return True


def rename_input(joint: JointGraph) -> bool:
    joint.primals[0].target = "weight"
    return True


def bare_input(joint: JointGraph) -> bool:
    with joint.graph.inserting_after(joint.tangents[-1]):
        joint.graph.placeholder("bare").meta["val"] = None
    return True


def drop_write(joint: JointGraph) -> bool:
    joint.graph.erase_node(node(joint, "copy_"))
    return True


def draw_again(joint: JointGraph) -> bool:
    insert(joint, "mm", aten.rand_like.default, node(joint, "mm"))
    return True


def draw_less(joint: JointGraph) -> bool:
    draw = node(joint, "native_dropout")
    draw.args = (draw.args[0], 0.5, True)
    draw.target = aten.native_layer_norm.default
    return True


def say_no(joint: JointGraph) -> bool:
    insert(joint, "mm", aten.sin.default, node(joint, "mm"))
    return False


def say_yes(_: JointGraph) -> bool:
    return True


def lose_gradient_slot(joint: JointGraph) -> bool:
    joint.graph.output_node().args = (joint.outputs[:-1],)  # type: ignore[assignment]
    return True


def swap_outputs(joint: JointGraph) -> bool:
    joint.set_gradients({i + 1: gradient for i, gradient in joint.gradients.items()})
    return True


def other_forward_output(joint: JointGraph) -> bool:
    outputs = [node(joint, "mm") if i == joint.num_forward_outputs - 1 else o for i, o in enumerate(joint.outputs)]
    joint.graph.output_node().args = (tuple(outputs),)
    return True


def wrong_shape_of_gradient(joint: JointGraph) -> bool:
    (position, gradient), *_ = joint.gradients.items()
    made = insert(joint, gradient.name, aten.sum.default, gradient)
    with made.meta["val"].fake_mode:
        made.meta["val"] = torch.empty(())
    joint.set_gradients({**joint.gradients, position: made})
    return True


def forget_value(joint: JointGraph) -> bool:
    made = insert(joint, "mm", aten.sin.default, node(joint, "mm"))
    del made.meta["val"]
    return True


def other_strides(joint: JointGraph) -> bool:
    made = insert(joint, "mm", aten.sin.default, node(joint, "mm"))
    made.meta["val"] = made.meta["val"].t()
    return True


def other_storage(joint: JointGraph) -> bool:
    made = insert(joint, "mm", aten.view.default, node(joint, "mm"), [3, 4])
    made.meta["val"] = made.meta["val"].clone()
    return True


def forward_reads_backward(joint: JointGraph) -> bool:
    gradient = next(iter(joint.gradients.values()))
    joint.graph.output_node().args = (
        (*joint.outputs[: joint.num_forward_outputs - 1], gradient, *joint.backward_outputs),
    )
    return True


def untag(joint: JointGraph) -> bool:
    made = insert(joint, "expand", aten.sin.default, node(joint, "expand"))
    made.meta["partitioner_tag"] = "is_forward"
    return True


def to_the_backward(joint: JointGraph) -> bool:
    node(joint, "mm").meta["partitioner_tag"] = "is_backward"
    return True


BROKEN: list[tuple[Callable[[JointGraph], bool], Callable[[JointGraph], Still], str]] = [
    (out_of_order, graph_is_well_formed, "used before it has been defined"),
    (stray_reader, graph_is_well_formed, "readers that do not read: sum_1 of mm"),
    (swap_inputs, inputs_stay, "inputs were primals_1"),
    (rename_input, inputs_stay, "are weight"),
    (bare_input, inputs_stay, "inputs without a descriptor: bare"),
    (drop_write, writes_stay_in_order, r"writes were \[copy_\], are \[\]"),
    (draw_again, draws_stay, "draws were"),
    (draw_less, draws_stay, r"draws were \[native_dropout\], are \[\]"),
    (say_no, passes_say_whether_they_changed_it, "it says False, and the graph changed"),
    (say_yes, passes_say_whether_they_changed_it, "it says True, and the graph did not change"),
    (lose_gradient_slot, outputs_keep_their_places, "the forward returned"),
    (other_forward_output, outputs_keep_their_places, "the forward returned"),
    (swap_outputs, outputs_keep_their_places, "gradients that are not their primal's"),
    (wrong_shape_of_gradient, outputs_keep_their_places, "gradients that are not their primal's"),
    (forget_value, values_stay_known, "do not say what they hold: sin"),
    (other_strides, values_are_true, "sin_default says"),
    (other_storage, values_are_true, "view_default says"),
    (forward_reads_backward, halves_stay_apart, "the forward returns the backward's"),
    (untag, halves_stay_apart, r"\['sin_default'\] read the backward's"),
    (to_the_backward, halves_stay_apart, "'mm'"),
]


@pytest.mark.parametrize(("breaks", "rule", "what"), BROKEN, ids=lambda item: getattr(item, "__name__", None))
def test_a_rule_finds_what_breaks_it(
    breaks: Callable[[JointGraph], bool], rule: Callable[[JointGraph], Still], what: str
) -> None:
    joint, _ = joint_graph(Everything(), torch.randn(3, 4))
    assert rule in RULES
    with pytest.raises(PassError, match=f"'{breaks.__name__}', after no other, failed: AssertionError: .*{what}"):
        run_passes(joint, [NamedPass(breaks.__name__, breaks)], [rule])


def test_a_pass_that_does_no_harm_breaks_no_rule() -> None:
    joint, _ = joint_graph(Everything(), torch.randn(3, 4))

    def harmless(joint: JointGraph) -> bool:
        made = insert(joint, "mm", aten.sin.default, node(joint, "mm"))
        with made.meta["val"].fake_mode:
            made.meta["val"] = torch.empty(3, 4)
        return True

    assert run_passes(joint, [NamedPass("harmless", harmless)], RULES)


def test_every_rule_is_broken_by_a_test() -> None:
    assert {rule for _, rule, _ in BROKEN} == set(RULES)

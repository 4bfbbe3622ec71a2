"""The lists of passes over joint graphs: what they give, and which orders are refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import graphopt
from graphopt.base.errors import PassError
from graphopt.device.ranks import Ranks
from graphopt.graph.joint import JointGraph
from graphopt.passes.joint import (
    CLEANING,
    Passes,
    return_gradients,
    send_sums,
    sum_gradients,
    update_parameters,
)
from graphopt.passes.run_passes import run_passes
from graphopt.verify.step_result import differences, run_step
from tests.support.joint import joint_graph, text_of
from tests.support.small_models import Bias, Dropout, Linear, Shapes, Writes

THREE = Ranks(None, 0, 3, "group", "gloo")  # type: ignore[arg-type]
SUM = sum_gradients([0], fuse_products=True)
SEND = send_sums(THREE, {}, scaled=False)
UPDATE = update_parameters({}, clip_value=None)


@pytest.mark.parametrize("model", [Dropout(), Bias(), Shapes(), Writes()], ids=lambda m: type(m).__name__)
def test_a_step_with_every_pass_equals_eager(model: nn.Module) -> None:
    rows = {"Dropout": (3, 4), "Writes": (4, 3)}.get(type(model).__name__, (3,))
    args = (torch.randn(rows, requires_grad=not isinstance(model, Dropout)),)
    eager = run_step(model, model._call_impl, args, {})
    graphopt.optimize(model, "1GiB", example_inputs=args)
    assert differences(eager, run_step(model, model, args, {})) == []


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (SEND, "pass 'compress', after no other, failed.*requires that no gradient is returned"),
        ((*SUM, *UPDATE), "'update_in_backward', after accumulate .*requires that gradients are unused"),
        ((*SUM, *SUM), "'accumulate', after accumulate .*requires that gradients are unused"),
        ((*SUM, *return_gradients([0])), "'keep_gradients', after accumulate .*requires that gradients are unused"),
    ],
)
def test_a_wrong_order_is_refused(wrong: Passes, what: str) -> None:
    joint, _ = joint_graph(Linear(), torch.randn(2, 3))
    with pytest.raises(PassError, match=what):
        run_passes(joint, wrong)


def test_symbols_must_be_numbers_before_they_are_read() -> None:
    seen = []

    def backend(module: torch.fx.GraphModule, _inputs: object) -> torch.fx.GraphModule:
        for node in module.graph.nodes:
            node.meta["val"] = node.meta.get("example_value")
            if isinstance(node.meta["val"], torch.SymInt):
                int(node.meta["val"])  # a guard ties it to its value
        with pytest.raises(
            PassError, match=r"'causal_masks', after no other, failed.*requires that no symbol is constant"
        ):
            run_passes(JointGraph(module, 1), CLEANING[1:])
        seen.append(module)
        return module

    torch._dynamo.reset()
    torch.compile(lambda x: x.view(x.shape[0] * 2, -1).sum(), backend=backend, dynamic=True)(torch.randn(4, 6))
    assert seen


def test_cleaning_again_changes_nothing() -> None:
    for model, x in ((Writes(), torch.randn(4, 3, requires_grad=True)), (Dropout(), torch.randn(3, 4))):
        joint, _ = joint_graph(model, x)
        assert run_passes(joint, CLEANING)
        text = text_of(joint.graph)
        assert not run_passes(joint, CLEANING) and text_of(joint.graph) == text

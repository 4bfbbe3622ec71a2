"""Running statistics are not given to a backward that uses those of the batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import graphopt
from graphopt.passes.joint.contract import RULES
from graphopt.passes.joint.unread_statistics import unread_statistics
from graphopt.passes.run_passes import NamedPass, run_passes
from graphopt.verify.step_result import differences, run_step
from tests.support.joint import edits, joint_graph, text_of

PASS = [NamedPass("unread_statistics", unread_statistics)]


class Normed(nn.Module):
    def __init__(self, frozen: bool = False, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3).to(dtype)
        self.frozen = frozen

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        norm = self.norm
        if self.frozen:
            given = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
            return nn.functional.batch_norm(x, *given, training=False).square().sum()
        return norm(x).square().sum()  # type: ignore[no-any-return]


def test_a_backward_in_training_is_not_given_them() -> None:
    joint, _ = joint_graph(Normed(), torch.randn(2, 3, 4, 4))
    before = text_of(joint.graph)
    assert run_passes(joint, PASS, RULES)
    (went, came) = edits(before, text_of(joint.graph))
    statistics = "primals_5, getitem_3, getitem_4, getitem_1, getitem_2, True"
    assert statistics in went and went.replace("getitem_3, getitem_4", "None, None")[2:] == came[2:]
    assert not unread_statistics(joint)


def test_one_of_frozen_statistics_is() -> None:
    joint, _ = joint_graph(Normed(frozen=True), torch.randn(2, 3, 4, 4))
    before = text_of(joint.graph)
    assert "native_batch_norm_backward" in before
    assert not run_passes(joint, PASS, RULES) and text_of(joint.graph) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_step_equals_eager(dtype: torch.dtype, layout: torch.memory_format) -> None:
    x = torch.randn(4, 3, 6, 6, dtype=dtype).to(memory_format=layout).requires_grad_()
    model = Normed(dtype=dtype)
    eager = run_step(model, model._call_impl, (x,), {})
    graphopt.optimize(model, "1GiB", example_inputs=(x,))
    assert differences(eager, run_step(model, model, (x,), {})) == []

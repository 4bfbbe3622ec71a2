"""An input that the step adds a number to is added to in place; one that others read too is not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import graphopt
from graphopt.passes.joint.add_in_place import add_in_place
from graphopt.passes.joint.contract import RULES
from graphopt.passes.run_passes import NamedPass, run_passes
from graphopt.verify.step_result import differences, run_step
from tests.support.joint import edits, joint_graph, text_of

PASS = [NamedPass("add_in_place", add_in_place)]


class Counts(nn.Module):
    calls: torch.Tensor

    def __init__(self, reads: str = "") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.reads = reads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        factor = self.calls * 2.0 if self.reads == "before" else 1.0
        self.calls += 1
        factor = self.calls * 2.0 if self.reads == "after" else factor
        return (x * self.weight * factor).sum()


def test_a_counter_is_added_to_in_place() -> None:
    joint, _ = joint_graph(Counts(), torch.randn(3))
    before = text_of(joint.graph)
    assert run_passes(joint, PASS, RULES)
    assert edits(before, text_of(joint.graph)) == [
        "- add = add.Tensor(primals_1, 1)",
        "- copy_ = copy_.default(primals_1, add)",
        "+ copy_ = add_.Tensor(primals_1, 1)",
    ]
    assert not add_in_place(joint)


@pytest.mark.parametrize("reads", ["before", "after"])
def test_one_that_is_read_is_copied_to(reads: str) -> None:
    joint, _ = joint_graph(Counts(reads), torch.randn(3))
    before = text_of(joint.graph)
    assert not run_passes(joint, PASS, RULES) and text_of(joint.graph) == before


@pytest.mark.parametrize("reads", ["", "before", "after"])
def test_a_step_equals_eager(reads: str) -> None:
    model, args = Counts(reads), (torch.randn(3),)
    eager = run_step(model, model._call_impl, args, {})
    graphopt.optimize(model, "1GiB", example_inputs=args)
    assert differences(eager, run_step(model, model, args, {})) == []

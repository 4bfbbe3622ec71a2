"""Gradients that one weight gets from several places are added up in place, and only where nobody else reads them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import graphopt
from graphopt.device.measure import peak_bytes
from graphopt.graph.nodes import is_view
from graphopt.graph.roles import RUN_ONCE
from graphopt.passes.joint.sum_in_place import sum_in_place
from tests.support.joint import joint_graph, text_of

WORDS, WIDTH = 4000, 64


class Tied(nn.Module):
    """A weight that embeds words, twice if `again`, and is the head too; with `scaled` the head's is read once more."""

    def __init__(self, words: int = WORDS, width: int = WIDTH, again: bool = False, scaled: bool = False) -> None:
        super().__init__()
        self.words, self.mix = nn.Embedding(words, width), nn.Linear(width, width)
        self.again, self.scaled = again, scaled

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.mix(self.words(ids)).tanh()
        if self.again:
            hidden = hidden + self.words(ids.flip(0))
        weight = self.words.weight * 0.5 if self.scaled else self.words.weight
        return nn.functional.cross_entropy((hidden @ weight.t()).flatten(0, -2), ids.flatten())


def test_the_gradients_of_a_weight_are_added_up_in_place() -> None:
    joint, _ = joint_graph(Tied(5, 3), torch.tensor([[1, 2]]))
    before = text_of(joint.graph)
    assert before.count("add.Tensor") == 1
    assert sum_in_place(joint)
    text = text_of(joint.graph)
    (line,) = [line for line in text.splitlines() if "add_.Tensor" in line]
    (total,) = [node for node in joint.graph.nodes if "add_.Tensor" in str(node.target)]
    to, added = total.all_input_nodes
    assert total.meta["val"].untyped_storage()._cdata == to.meta["val"].untyped_storage()._cdata
    assert "add.Tensor" not in text and line.split(" = ")[0] in text.splitlines()[-1]
    assert sum(bool(node.meta.get(RUN_ONCE)) for node in joint.graph.nodes) == 1 and not added.meta.get(RUN_ONCE)
    assert not sum_in_place(joint)


class Kept(nn.Module):
    """Sums of gradients of which one is read twice, is as small as a number, or is an input's beside a weight's."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.weight, self.bias = kind, nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "one gradient for two":
            # the product's gradient is that of both, and so of the sum
            return ((self.weight + x).sin() + self.weight.sin() + self.weight).square().sum()
        if self.kind == "expanded":
            return (self.bias + x).sum() + self.bias.sum()
        return (self.weight @ x).sum() + (x @ self.weight).sum() + self.weight.sum()


@pytest.mark.parametrize("kind", ["one gradient for two", "expanded", "an expanded number"])
def test_gradients_are_eagers_wherever_sums_are(kind: str) -> None:
    torch.manual_seed(0)
    eager, x = Kept(kind), torch.randn(4, 4, requires_grad=True)
    model, ours = copy.deepcopy(eager), x.detach().clone().requires_grad_()
    graphopt.optimize(model, "1MiB")
    for _ in range(2):
        eager(x).backward()
        model(ours).backward()
    pairs = [(a.grad, b.grad) for a, b in zip(eager.parameters(), model.parameters(), strict=True)]
    assert all(torch.equal(a, b) for a, b in [*pairs, (x.grad, ours.grad)] if a is not None)


def measured(model: nn.Module, ids: torch.Tensor) -> int:
    def step() -> None:
        model.zero_grad()
        model(ids).backward()

    step()
    return peak_bytes(step, [*model.parameters(), ids], "cpu")


@pytest.mark.parametrize("how", [{}, {"again": True}, {"scaled": True}])
def test_a_tied_weights_gradients_take_no_third_of_their_size(how: dict[str, Any]) -> None:
    torch.manual_seed(0)
    eager, ids = Tied(**how), torch.randint(WORDS, (2, 4))
    eager(ids).backward()
    model = graphopt.optimize(copy.deepcopy(eager), "100MB", example_inputs=ids)
    least = model.graphopt.plan.minimum_bytes
    model.graphopt.restore()
    graphopt.optimize(model, least, example_inputs=ids)
    weight_bytes = WORDS * WIDTH * 4
    assert measured(model, ids) <= least < (4.1 if how.get("scaled") else 3.1) * weight_bytes
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(eager.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"update_in_backward": True}, {"clip": "norm"}])
def test_a_step_trains_a_tied_weight_as_eager_does(options: dict[str, Any]) -> None:
    given = {**options, **({"clip": graphopt.ClipNorm(0.1)} if "clip" in options else {})}
    torch.manual_seed(0)
    eager, ids = Tied(), torch.randint(WORDS, (4, 4))
    model = copy.deepcopy(eager)
    theirs, ours = (torch.optim.SGD(each.parameters(), lr=1e-2) for each in (eager, model))
    step = graphopt.train_step(model, None, ours, "100MB", **given)
    for _ in range(3):
        theirs.zero_grad()
        micros = ids.chunk(options.get("accumulate", 1))
        for micro in micros:
            (eager(micro) / len(micros)).backward()
        if "clip" in options:
            nn.utils.clip_grad_norm_(eager.parameters(), 0.1)
        theirs.step()
        step(ids)
    for a, b in zip(eager.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-7)
        assert options or torch.equal(a, b)


class Joined(nn.Module):
    """Layers that each read all before, so that a value's gradient is a sum of many; with `hooked`, read by a hook."""

    def __init__(self, hooked: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16 * i, 16) for i in range(1, 7))
        self.hooked = hooked

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = [x.sin()]
        for layer in self.layers:
            value = layer(torch.cat(found, 1)).tanh()
            if self.hooked:
                value.register_hook(lambda gradient: gradient * 2)
            found.append(value)
        return torch.cat(found, 1).square().mean()


def test_gradients_of_values_that_are_read_often_are_added_up_in_place() -> None:
    joint, _ = joint_graph(Joined(), torch.randn(4, 16, requires_grad=True))
    late = joint.backward_nodes()
    sums = [node for node in late if node.target is torch.ops.aten.add.Tensor]
    assert len(sums) > 15 and sum_in_place(joint)
    left = [node for node in joint.backward_nodes() if node.target is torch.ops.aten.add.Tensor]
    # a part of the joined gradient is no memory of its own: the first sum of two such parts makes it
    assert 0 < len(left) <= 6 and all(is_view(part) for node in left for part in node.all_input_nodes)


@pytest.mark.parametrize("hooked", [False, True])
def test_their_bits_are_eagers_in_less_memory(hooked: bool) -> None:
    torch.manual_seed(0)
    eager, x = Joined(hooked), torch.randn(512, 16)
    model = copy.deepcopy(eager)
    graphopt.optimize(model, "100MB", example_inputs=x)
    least = model.graphopt.plan.minimum_bytes
    model.graphopt.restore()
    graphopt.optimize(model, least, example_inputs=x)
    assert measured(model, x) <= least
    for _ in range(2):
        eager.zero_grad()
        model.zero_grad()
        eager(x).backward()
        model(x).backward()
        assert all(torch.equal(a.grad, b.grad) for a, b in zip(eager.parameters(), model.parameters(), strict=True))


def test_a_multiple_and_what_the_forward_adds_are_left_alone() -> None:
    class Multiple(torch.autograd.Function):
        @staticmethod
        def forward(_: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(_: Any, gradient: torch.Tensor) -> torch.Tensor:
            return torch.add(gradient.sin(), gradient.cos(), alpha=3)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return Multiple.apply((self.weight @ x).sin() + (self.weight @ x).cos()).square().sum()

    torch.manual_seed(0)
    eager, x = Model(), torch.randn(4, 4)
    joint, _ = joint_graph(eager, x)
    assert sum_in_place(joint)
    sums = [node for node in joint.graph.nodes if node.target is torch.ops.aten.add.Tensor]
    assert [node in joint.backward_nodes() for node in sums] == [False, True] and sums[1].kwargs == {"alpha": 3}
    model = graphopt.optimize(copy.deepcopy(eager), "1MiB", example_inputs=x)
    eager(x).backward()
    model(x).backward()
    assert torch.equal(eager.weight.grad, model.weight.grad)


def test_sums_of_sizes_that_change_are_in_place_too() -> None:
    torch.manual_seed(0)
    eager = Joined()
    model = graphopt.optimize(copy.deepcopy(eager), "1GiB", example_inputs=torch.randn(8, 16), dynamic=True)
    (planned,) = model.graphopt.planned_graphs
    targets = [str(node.target) for node in planned.captured.step.graph_module.graph.nodes]
    assert planned.captured.step.has_changing_sizes and targets.count("aten.add_.Tensor") == 10
    for rows in (8, 5, 12):
        x = torch.randn(rows, 16)
        eager.zero_grad()
        model.zero_grad()
        eager(x).backward()
        model(x).backward()
        assert all(torch.equal(a.grad, b.grad) for a, b in zip(eager.parameters(), model.parameters(), strict=True))


def test_one_of_several_results_may_still_be_made_twice() -> None:
    """Its op would have to run once, and at the smallest budgets planners run backwards of convolutions again."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.sin()
            return (x + self.layer(x)).square().mean()

    joint, _ = joint_graph(Residual(), torch.randn(4, 4, 6, 6, requires_grad=True))
    assert not sum_in_place(joint)
    (maker,) = joint.graph.find_nodes(op="call_function", target=torch.ops.aten.convolution_backward.default)
    assert not maker.meta.get(RUN_ONCE)

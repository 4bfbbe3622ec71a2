"""Models on the meta device whose alike layers are captured a few times, against captures of all of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphopt.api import optimize
from graphopt.api.optimized import Optimized
from graphopt.api.shortened import shortened
from graphopt.api.sized_estimate import sized
from graphopt.capture.repeated.periods import NotAlike
from graphopt.run.model.loss_module import StepModule


class Block(nn.Module):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.norm, self.wide, self.narrow = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(48, 16)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        return x + F.dropout(self.narrow(F.gelu(self.wide(self.norm(x)) + bias)), 0.1, self.training)


class Stack(nn.Module):
    """Layers one behind the other, and what a subclass makes of them."""

    def __init__(self, layers: int = 7) -> None:
        super().__init__()
        self.words, self.bias = nn.Embedding(50, 16), nn.Linear(16, 48)
        self.layers = nn.ModuleList(Block(number) for number in range(layers))
        self.head = nn.Linear(16, 50, bias=False)

    def forward(self, words: Tensor, labels: Tensor) -> Tensor:
        hidden = self.words(words)
        bias = self.bias(hidden)
        hidden = self.through(hidden, bias)
        return F.cross_entropy(self.head(hidden).flatten(0, 1), labels.flatten())

    def through(self, hidden: Tensor, bias: Tensor) -> Tensor:
        for layer in self.layers:
            hidden = layer(hidden, bias)
        return hidden


class Scaled(Stack):
    """One layer in the middle does another thing, by the number that it has in the loop."""

    def through(self, hidden: Tensor, bias: Tensor) -> Tensor:
        for number, layer in enumerate(self.layers):
            hidden = layer(hidden, bias) * (0.5 if number == 4 else 1.0)
        return hidden


class Kept(Stack):
    """All results of layers are read behind them."""

    def through(self, hidden: Tensor, bias: Tensor) -> Tensor:
        results = [hidden]
        for layer in self.layers:
            results.append(layer(results[-1], bias))
        return torch.stack(results).mean(0)


class Numbered(Stack):
    """Each layer has a number of its own in its arithmetic."""

    def through(self, hidden: Tensor, bias: Tensor) -> Tensor:
        for layer in self.layers:
            hidden = layer(hidden, bias / (layer.number + 1))
        return hidden


def planned(model: type[Stack], layers: int = 7, **options: Any) -> Optimized:
    with torch.device("meta"):
        words = torch.zeros(4, 12, dtype=torch.long)
        return optimize.plan_model(model(layers), (words, words), mem_budget="1GiB", **options)


def told(optimized: Optimized) -> Mapping[str, Any]:
    """All that is known of a planned step."""
    (each,) = optimized.planned_graphs
    step, problem = each.captured.step, each.captured.problem
    return {
        "resident": dict(optimized.in_force.resident_bytes),
        "values": [(value.kind, value.bytes, value.shape, value.dtype) for value in step.values],
        "ops": [
            (op.seconds, op.workspace_bytes, op.inputs, op.outputs, op.backward, op.recomputable, op.pinned)
            for op in problem.ops
        ],
        "outputs": sorted(problem.outputs),
        "boundary": step.boundary,
        "paths": [op.module_path for op in step.ops],
        # sums of the same seconds, some in another order
        "curve": [(point.peak_bytes, f"{point.seconds:.12g}", point.planner) for point in each.study.curve],
    }


def whole(monkeypatch: pytest.MonkeyPatch, *args: Any, **options: Any) -> Optimized:
    """The same, with all layers captured."""
    with monkeypatch.context() as patched:
        patched.setattr(optimize, "shortened", lambda *_: iter(()))
        return planned(*args, **options)


def test_a_step_with_layers_left_out_is_that_with_all(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="graphopt"):
        short = planned(Stack)
    assert "captured without 3 of the layers of layers" in caplog.text and "all layers are" not in caplog.text
    assert told(short) == told(whole(monkeypatch, Stack))
    names = [op.name for op in short.planned_graphs[0].captured.step.ops]
    assert len(set(names)) == len(names)
    assert "layers.6" in " ".join(short.plan.recomputed + tuple(told(short)["paths"]))
    assert short.report.plan.eager_peak_bytes == short.plan.eager_peak_bytes


@pytest.mark.slow
def test_so_it_is_at_all_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    dynamic = {"batch": 0, "length": 1}
    words = torch.zeros(4, 12, dtype=torch.long, device="meta")
    both = planned(Stack, dynamic=dynamic), whole(monkeypatch, Stack, dynamic=dynamic)
    assert told(both[0]) == told(both[1])
    formulas = [str(sized(each.in_force, (words, words), dynamic).formula) for each in both]
    assert formulas[0] == formulas[1] and "batch·length" in formulas[0]


@pytest.mark.parametrize("model", [Scaled, Kept, Numbered])
def test_layers_that_only_look_alike_are_told_apart(model: type[Stack]) -> None:
    with torch.device("meta"):
        step, words = StepModule(model()), torch.zeros(4, 12, dtype=torch.long)
    with pytest.raises(NotAlike):
        next(shortened(step, (words, words), {}))


def test_where_they_are_told_apart_all_are_captured(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with caplog.at_level(logging.INFO, logger="graphopt"):
        found = told(planned(Scaled))
    assert "all layers are captured" in caplog.text
    assert found == told(whole(monkeypatch, Scaled))


def test_the_model_stays_as_it_is() -> None:
    with torch.device("meta"):
        model, words = Stack(), torch.zeros(4, 12, dtype=torch.long)
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    optimize.plan_model(model.eval(), (words, words), mem_budget="1GiB")
    assert {name: dict(vars(module)) for name, module in model.eval().named_modules()} == {
        name: {**kept, "training": False} for name, kept in before.items()
    }
    assert len(model.layers) == 7 and all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["GPT2", "Llama", "Bert"])
def test_so_are_models_of_transformers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    shape = {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 6, "num_attention_heads": 2}
    if name == "GPT2":
        shape = {"vocab_size": 128, "n_embd": 32, "n_layer": 6, "n_head": 2}
    config = getattr(transformers, f"{name}Config")(**shape, max_position_embeddings=64, use_cache=False)
    of = transformers.AutoModelForMaskedLM if name == "Bert" else transformers.AutoModelForCausalLM
    with torch.device("meta"):
        model, ids = of.from_config(config).train(), torch.zeros(2, 24, dtype=torch.long)
    inputs, dynamic = {"input_ids": ids, "labels": ids}, {"batch": 0, "length": 1}
    options = {"mem_budget": "1GiB", "dynamic": dynamic}
    short = optimize.plan_model(model, inputs, **options)
    monkeypatch.setattr(optimize, "shortened", lambda *_: iter(()))
    both = short, optimize.plan_model(model, inputs, **options)
    assert told(both[0]) == told(both[1])
    formulas = [str(sized(each.in_force, inputs, dynamic).formula) for each in both]
    assert formulas[0] == formulas[1]

"""`--meta`: models without weights, from a function or a configuration, estimated as those that are run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

import graphopt
from graphopt.api.fit import fit_model
from graphopt.api.optimize import plan_model
from graphopt.cli import cli
from graphopt.cli.build_function import load_target
from graphopt.device.measure import peak_bytes

SHAPE = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4}
FILE = """
from tests.api.test_estimate_by_size import Attention, tokens

def build():
    model = Attention()
    assert all(parameter.is_meta for parameter in model.parameters())
    return model, tokens(4, 32)
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama")
    LlamaConfig(
        vocab_size=512, num_key_value_heads=2, max_position_embeddings=64, use_cache=False, dtype="float32", **SHAPE
    ).save_pretrained(path)
    return path / "config.json"


@pytest.mark.slow
def test_a_configuration_is_estimated_as_the_model_that_is_run(config: Path) -> None:
    target = load_target(str(config), "meta")
    assert all(tensor.is_meta for tensor in target.model.parameters())
    assert target.dynamic == {"batch": 0, "length": 1} and target.example_inputs["input_ids"].shape == (2, 64)
    found = graphopt.estimate(target.model, target.example_inputs, dynamic=target.dynamic)
    assert found.device == "meta"
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig.from_pretrained(config))
    model.loss_type = "ForCausalLM"
    for batch, length in ((3, 48), (8, 64)):
        ids = torch.randint(0, 512, (batch, length))
        inputs = {"input_ids": ids, "labels": ids, "use_cache": False}
        there = graphopt.estimate(model, inputs, cost_model="roofline")
        assert found.peak(batch=batch, length=length) == there.eager_peak_bytes
        budget = (there.minimum_bytes + there.eager_peak_bytes) // 2
        assert found.fits(budget, batch=batch, length=length)
        # beside the bytes that are counted, attention takes scratch
        measured = measured_step(graphopt.optimize(model, "1GiB", example_inputs=inputs), inputs)
        assert found.peak(batch=batch, length=length) == pytest.approx(measured, rel=0.02)


def measured_step(model: nn.Module, inputs: dict[str, Any]) -> int:
    """The highest number of bytes of a step of a model that returns its loss; its logits are held as in a loop."""

    def step() -> None:
        output = model(**inputs)
        output.loss.backward()

    step()
    model.zero_grad()
    return peak_bytes(step, [*model.parameters(), *model.buffers(), inputs["input_ids"]], "cpu")


@pytest.mark.slow
def test_plans_and_tables_of_a_configuration(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", str(config), "--meta", "--mem-budget", "80GB"]) == 0
    text = capsys.readouterr().out
    assert "on the meta device: nothing was allocated or run" in text and "·batch·length" in text
    words = ["sweep", str(config), "--meta", "--over", "batch=1:8,length=16:64", "--mem-budget", "4MiB", "--json"]
    assert cli.main(words) == 0
    data = json.loads(capsys.readouterr().out)
    assert len(data["points"]) == 4 * 3 and data["formula"]["optimizer"] != "0"


def test_a_function_builds_on_meta_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "attention.py"
    path.write_text(FILE)
    assert cli.main(["plan", f"{path}:build", "--meta", "--mem-budget", "1GiB", "--dynamic", "batch=0", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert "batch" in data["formula"]["chosen"] and "length" not in data["formula"]["chosen"]


@pytest.mark.parametrize("loss_fn", [nn.functional.mse_loss, nn.functional.smooth_l1_loss])
def test_what_is_captured_on_meta_is_what_is_captured_on_a_device(loss_fn: Any) -> None:
    steps = []
    for device in ("cpu", "meta"):
        with torch.device(device):
            model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
            batch = torch.randn(6, 8), torch.randn(6, 4)
        options = {"mem_budget": "1GiB", "cost_model": "roofline", "dynamic": {"batch": 0}}
        (planned,) = plan_model(model, batch, loss_fn, **options).planned_graphs
        values = [(value.kind, value.bytes) for value in planned.captured.step.values]
        steps.append((values, [str(node.target) for node in planned.captured.step.compute_nodes]))
    assert steps[0] == steps[1] and sum(kind == "gradients" for kind, _ in steps[0][0]) == 4


def test_what_is_no_configuration_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.json"
    path.write_text("{}")
    assert cli.main(["plan", str(path), "--mem-budget", "1GiB"]) == 2
    assert "needs --meta" in capsys.readouterr().err
    assert cli.main(["plan", str(path), "--meta", "--mem-budget", "1GiB"]) == 2
    assert "no configuration of a causal language model" in capsys.readouterr().err


@pytest.mark.slow
def test_what_fits_is_what_fits_on_a_device(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of two equal batches, so that what the optimizer holds and the sums of gradients are in it."""
    target = load_target(str(config), "meta")
    with torch.random.fork_rng():
        model = AutoModelForCausalLM.from_config(LlamaConfig.from_pretrained(config))
    model.loss_type = "ForCausalLM"
    inputs = {
        name: torch.zeros(value.shape, dtype=value.dtype) if isinstance(value, torch.Tensor) else value
        for name, value in target.example_inputs.items()
    }
    on_device = fit_model(model.train(), inputs, mem_budget="4MiB", cost_model="roofline")
    on_meta = fit_model(target.model, target.example_inputs, mem_budget="4MiB")
    least = [[way.minimum_bytes for way in found.ways] for found in (on_device, on_meta)]
    assert len(least[0]) == len(least[1]) > 1
    assert least[1] == pytest.approx(least[0], rel=0.03)
    assert cli.main(["fit", str(config), "--meta", "--mem-budget", "4MiB"]) in (0, 3)
    text = capsys.readouterr().out
    assert "on the meta device: nothing was allocated or run. Parameters are float32." in " ".join(text.split())


def test_a_configuration_without_a_dtype_is_of_float32_as_transformers_makes_it(tmp_path: Path) -> None:
    fields = {**LlamaConfig(vocab_size=512, num_key_value_heads=2, max_position_embeddings=64, **SHAPE).to_dict()}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({key: value for key, value in fields.items() if key not in ("dtype", "torch_dtype")}))
    assert {parameter.dtype for parameter in load_target(str(path), "meta").model.parameters()} == {torch.float32}


def test_a_step_that_learns_nothing_there_is_an_error(config: Path) -> None:
    """Without the mends no operator before the loss has a derivative: bytes of a step without gradients are none."""
    model = load_target(str(config), "meta").model
    ids = torch.zeros(2, 8, dtype=torch.long, device="meta")
    step = graphopt.train_step(model, None, torch.optim.AdamW(model.parameters()), "1GiB", cost_model="roofline")
    with pytest.raises(graphopt.CaptureError, match="no parameter gets a gradient on the meta device"):
        step.division.trial((), {"input_ids": ids, "labels": ids, "use_cache": False}, 2)

"""Models of other libraries, as they come out of them: their parameters, gradients and files are what they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import graphopt
from tests.support.epochs import padded, rows, tiny_gpt2

Result = tuple[float, dict[str, torch.Tensor]]


def gradients(model: nn.Module, loss: torch.Tensor) -> Result:
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return loss.item(), found


def check(model: nn.Module, mem_budget: str, run: Any) -> None:
    """Eager's bits inside of a budget that is below eager's peak, and the state_dict that was."""
    state, eager = list(model.state_dict()), gradients(model, run(model))
    graphopt.optimize(model, mem_budget)
    ours = gradients(model, run(model))
    assert ours[0] == eager[0] and ours[1].keys() == eager[1].keys() and eager[1]
    assert [name for name, gradient in eager[1].items() if not torch.equal(gradient, ours[1][name])] == []
    assert list(model.state_dict()) == state
    plan: Any = model.graphopt.plan  # type: ignore[union-attr]
    assert plan.peak_bytes <= plan.budget_bytes < plan.eager_peak_bytes
    (step,) = model.graphopt.history  # type: ignore[union-attr, misc]
    assert 0 < step.measured_bytes <= plan.budget_bytes


def test_lora_of_peft_and_its_adapter_goes_back_into_a_plain_model(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["c_attn"], lora_dropout=0.0, fan_in_fan_out=True)
    model = peft.get_peft_model(tiny_gpt2(), config).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    batch = padded(rows(4))
    check(model, "2.5MB", lambda each: each(**batch).loss)
    model.save_pretrained(str(tmp_path))
    assert not any(b"graphopt" in path.read_bytes() for path in tmp_path.iterdir())
    again = peft.PeftModel.from_pretrained(tiny_gpt2(), str(tmp_path)).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())


def test_a_unet_of_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "add_attention": False}
    sizes = {"sample_size": 16, "block_out_channels": (8,), "layers_per_block": 1, "norm_num_groups": 4}
    model = diffusers.UNet2DModel(**sizes, **blocks).train()
    noisy, noise = torch.randn(4, 3, 16, 16), torch.randn(4, 3, 16, 16)
    check(model, "1MB", lambda each: nn.functional.mse_loss(each(noisy, 10).sample, noise))


def test_an_exported_program() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Sequential(nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 32)) for _ in range(3)])
    inputs = torch.randn(64, 32)
    exported = torch.export.export(model, (inputs,)).module()
    check(exported, "350KB", lambda each: each(inputs).square().mean())

"""Masks that transformers writes out only while it is traced go, as in eager; masks that eager has stay."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import graphopt
from graphopt.passes.joint.causal_masks import causal_masks
from graphopt.passes.joint.contract import RULES
from graphopt.passes.joint.specialize import specialize
from graphopt.passes.run_passes import NamedPass, run_passes
from graphopt.verify.step_result import differences, run_step
from tests.support.joint import edits, joint_graph, text_of

PASSES = [NamedPass("specialize", specialize), NamedPass("causal_masks", causal_masks)]
IDS = torch.randint(0, 32, (2, 40), generator=torch.Generator().manual_seed(0))
OF_EAGER = torch.ones(2, 40, dtype=torch.int64)
PADDED = OF_EAGER.clone()
PADDED[1, 30:] = 0


class Language(nn.Module):
    """A model of transformers' that returns its loss."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        loss: torch.Tensor = self.model(input_ids=ids, labels=ids, attention_mask=mask).loss
        return loss


def gpt2() -> Language:
    sizes = {"vocab_size": 32, "n_positions": 40, "n_embd": 16, "n_layer": 2, "n_head": 2}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = GPT2Config(**sizes, **dropout, use_cache=False, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(with_sdpa(config))
    model.loss_type = "ForCausalLM"
    return Language(model)


def llama() -> Language:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    return Language(LlamaForCausalLM(with_sdpa(LlamaConfig(vocab_size=32, use_cache=False, **sizes))))


def bert() -> Language:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return Language(
        BertForMaskedLM(with_sdpa(BertConfig(vocab_size=32, max_position_embeddings=40, **sizes, **dropout)))
    )


def with_sdpa(config: Any) -> Any:
    config._attn_implementation = "sdpa"
    return config


class Own(nn.Module):
    """Attention with a triangle that the model writes itself: eager gives it to the kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = torch.ones(x.shape[-2], x.shape[-2], dtype=torch.bool, device=x.device).tril()
        y = x @ self.weight
        return F.scaled_dot_product_attention(y, y, y, attn_mask=mask).square().sum()


def test_a_triangle_becomes_is_causal() -> None:
    joint, _ = joint_graph(gpt2(), IDS)
    before = text_of(joint.graph)
    assert run_passes(joint, PASSES, RULES)
    after = text_of(joint.graph)
    attention = [line for line in edits(before, after) if "attention_for_cpu" in line]
    forward, backward = (
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention_for_cpu_backward",
    )
    assert sum(forward in line for line in attention) == 8 and sum(backward in line for line in attention) == 4
    for line in attention:
        assert ("attn_mask=None" in line and "True" in line) if line[0] == "+" else "attn_mask=where" in line
    gone = [line for line in edits(before, after) if line[0] == "-" and "attention" not in line]
    assert all(word in "".join(gone) for word in ("= where", "= le", "= bitwise_and", "= expand", "= cumsum"))
    assert not causal_masks(joint)


@pytest.mark.fast(1)
@pytest.mark.parametrize("build", [gpt2, llama, bert], ids=lambda build: build.__name__)
@pytest.mark.parametrize("mask", [None, OF_EAGER, PADDED], ids=["no mask", "nothing hidden", "padded"])
def test_a_step_equals_eager(build: Any, mask: torch.Tensor | None) -> None:
    torch.manual_seed(0)
    model = build()
    args = (IDS,) if mask is None else (IDS, mask)
    eager = run_step(model, model._call_impl, args, {})
    graphopt.optimize(model, "1GiB", example_inputs=args)
    assert differences(eager, run_step(model, model, args, {})) == []


def test_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "graphopt"):
        graphopt.optimize(gpt2(), "1GiB", example_inputs=(IDS,))
    assert any("2 attention mask(s) that transformers writes out" in message for message in caplog.messages)


def test_a_mask_that_is_given_stays() -> None:
    joint, _ = joint_graph(gpt2(), IDS, PADDED)
    run_passes(joint, PASSES[:1])
    before = text_of(joint.graph)
    assert "attn_mask=where" in before
    assert not run_passes(joint, PASSES[1:], RULES) and text_of(joint.graph) == before


def test_a_mask_of_the_models_own_stays() -> None:
    x = torch.randn(1, 2, 16, 8, requires_grad=True)
    joint, _ = joint_graph(Own(), x)
    before = text_of(joint.graph)
    assert "attn_mask=" in before
    assert not run_passes(joint, PASSES, RULES) and text_of(joint.graph) == before
    model = Own()
    eager = run_step(model, model._call_impl, (x,), {})
    graphopt.optimize(model, "1GiB", example_inputs=(x,))
    assert differences(eager, run_step(model, model, (x,), {})) == []

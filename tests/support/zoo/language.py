"""Language models from transformers, configured so that Dynamo sees one graph."""

import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from tests.support.zoo.case import Case, seeded


def _tokens(vocabulary: int, batch: int, length: int) -> torch.Tensor:
    return torch.randint(0, vocabulary, (batch, length))


def _gpt2(config: GPT2Config, batch: int, length: int) -> Case:
    ids = _tokens(config.vocab_size, batch, length)
    model = GPT2LMHeadModel(config)
    model.loss_type = "ForCausalLM"  # unset, transformers warns at every step, and a warning breaks the graph
    return Case(model, kwargs={"input_ids": ids, "labels": ids, "use_cache": False})


@seeded
def gpt2() -> Case:
    """Dropout everywhere and attention written out: the random masks are a large share of what is saved."""
    config = GPT2Config(
        vocab_size=512,
        n_positions=128,
        n_embd=128,
        n_layer=4,
        n_head=4,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    config._attn_implementation = "eager"
    return _gpt2(config, batch=4, length=128)


@seeded
def gpt2_anchor() -> Case:
    """The GPT-2 that the academic planners were measured on."""
    config = GPT2Config(
        vocab_size=1024,
        n_positions=256,
        n_embd=256,
        n_layer=12,
        n_head=4,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    config._attn_implementation = "eager"
    return _gpt2(config, batch=4, length=256)


def _bert(layers: int, width: int, vocabulary: int, length: int, dropout: float, attention: str) -> Case:
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=4 * width,
        max_position_embeddings=length,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    config._attn_implementation = attention
    ids = _tokens(vocabulary, 4, length)
    return Case(BertForMaskedLM(config), kwargs={"input_ids": ids, "labels": ids})


@seeded
def bert() -> Case:
    """Dropout around fused attention, and a decoder tied to the embedding."""
    return _bert(layers=4, width=128, vocabulary=512, length=128, dropout=0.1, attention="sdpa")


@seeded
def bert_anchor() -> Case:
    """The BERT that the academic planners were measured on."""
    return _bert(layers=12, width=256, vocabulary=1024, length=256, dropout=0.0, attention="eager")


@seeded
def t5() -> Case:
    """Encoder and decoder: every decoder block reads the encoder's output, and one position bias serves all blocks."""
    config = T5Config(
        vocab_size=512,
        d_model=128,
        d_kv=32,
        d_ff=512,
        num_layers=3,
        num_heads=4,
        dropout_rate=0.1,
        use_cache=False,
        decoder_start_token_id=0,
    )
    ids = _tokens(512, 4, 96)
    return Case(T5ForConditionalGeneration(config), kwargs={"input_ids": ids, "labels": ids, "use_cache": False})


def _llama(attention: str, traced_apart: bool = False) -> Case:
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        use_cache=False,
    )
    config._attn_implementation = attention
    ids = _tokens(512, 4, 128)
    inputs = {"input_ids": ids, "labels": ids, "use_cache": False}
    return Case(LlamaForCausalLM(config), kwargs=inputs, traced_apart=traced_apart)


@seeded
def llama() -> Case:
    """Grouped-query attention, rotary embeddings, tied head, no random op."""
    return _llama("eager")


@seeded
def llama_sdpa() -> Case:
    """transformers asks `is_exporting()`, which Dynamo answers with yes: eager runs `is_causal`, the graph a mask.

    transformers.masking_utils says so, and that torch 2.14 puts it right (pytorch#176499).
    """
    return _llama("sdpa", traced_apart=True)

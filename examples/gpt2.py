"""GPT-2 learns the Python manual, byte by byte.

python examples/gpt2.py --mem-budget 60MB --steps 20
graphopt plan examples/gpt2.py:build --mem-budget 60MB
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

import graphopt

BATCH, LENGTH = 4, 128


def batches() -> Iterator[dict[str, Tensor]]:
    text = torch.tensor(list("\n".join(topics.values()).encode()), dtype=torch.long)
    while True:
        starts = torch.randint(len(text) - LENGTH, (BATCH, 1))
        ids = text[starts + torch.arange(LENGTH)]
        yield {"input_ids": ids, "labels": ids}


def build() -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(1)
    sizes = {"vocab_size": 256, "n_positions": LENGTH, "n_embd": 128, "n_layer": 6, "n_head": 4}
    config = GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, use_cache=False)
    config._attn_implementation = "eager"
    model = GPT2LMHeadModel(config)
    model.loss_type = "ForCausalLM"  # unset, transformers warns inside the forward, which breaks the graph
    return model, next(batches())


def main(argv: Sequence[str] | None = None) -> list[float]:
    parser = argparse.ArgumentParser(description="GPT-2 learns the Python manual.")
    parser.add_argument("--mem-budget", default="60MB")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)

    model, example = build()
    model.to(args.device)
    example = {name: tensor.to(args.device) for name, tensor in example.items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model = graphopt.optimize(model, mem_budget=args.mem_budget, example_kwargs=example, optimizer=optimizer)
    print(model.graphopt.report)

    losses = []
    for step, batch in zip(range(args.steps), batches(), strict=False):
        loss = model(**{name: tensor.to(args.device) for name, tensor in batch.items()}).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        print(f"step {step:3d}  loss {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main()

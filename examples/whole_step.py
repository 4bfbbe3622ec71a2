"""A small transformer learns lines of the Python manual of uneven length: the whole training step as one graph.

python examples/whole_step.py --mem-budget 30MB --steps 30
graphopt plan examples/whole_step.py:build --mem-budget 30MB
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn

import graphopt

BATCH, LENGTH, WIDTH = 32, 80, 128


class Lines(nn.Module):
    """A causal transformer over bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.byte = nn.Embedding(256, WIDTH)
        self.place = nn.Embedding(LENGTH, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.1, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.guess = nn.Linear(WIDTH, 256)
        self.register_buffer("future", torch.ones(LENGTH - 1, LENGTH - 1, dtype=torch.bool).triu(1))

    def forward(self, text: Tensor) -> Tensor:
        places = torch.arange(text.shape[1], device=text.device)
        return self.guess(self.blocks(self.byte(text) + self.place(places), mask=self.future, is_causal=True))


def loss_of(guesses: Tensor, following: Tensor) -> Tensor:
    """The mean over the bytes that are there: -100 stands behind a line's end."""
    return nn.functional.cross_entropy(guesses.flatten(0, 1), following.flatten())


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    lines = [line.strip().encode()[:LENGTH] for line in "\n".join(topics.values()).splitlines() if len(line) > 8]
    while True:
        text = torch.full((BATCH, LENGTH), -100)
        for row, number in enumerate(torch.randint(len(lines), (BATCH,)).tolist()):
            text[row, : len(lines[number])] = torch.tensor(list(lines[number]))
        yield text[:, :-1].clamp(min=0), text[:, 1:].contiguous()


def build() -> tuple[nn.Module, tuple[Tensor, Tensor], Callable[[Tensor, Tensor], Tensor]]:
    torch.manual_seed(1)
    return Lines(), next(batches()), loss_of


def main(argv: Sequence[str] | None = None) -> list[float]:
    parser = argparse.ArgumentParser(description="A transformer learns lines of the Python manual.")
    parser.add_argument("--mem-budget", default="30MB")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)

    model, example, loss_fn = build()
    model.to(args.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=5)
    step = graphopt.train_step(
        model,
        loss_fn,
        optimizer,
        mem_budget=args.mem_budget,
        example_inputs=tuple(tensor.to(args.device) for tensor in example),
        accumulate=4,
        weights="tokens",
        clip=graphopt.ClipNorm(1.0),
        loss_scale=graphopt.DynamicLossScale(),
        autocast=torch.bfloat16,
        lr_scheduler=scheduler,
    )
    print(f"micro-batches of {step.micro_batch_size}, {step.plan.peak_bytes:,} bytes, {step.plan.overhead:+.1%} time")

    losses = []
    for number, batch in zip(range(args.steps), batches(), strict=False):
        out = step(*(tensor.to(args.device) for tensor in batch))
        losses.append(float(out.loss))
        print(f"step {number:3d}  norm {float(out.grad_norm):.2f}  skipped {out.skipped}  loss {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main()

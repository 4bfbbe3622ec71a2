"""An LSTM, unrolled in Python, forecasts sums of waves on a random walk.

python examples/lstm_forecaster.py --mem-budget 25MB --steps 20
graphopt plan examples/lstm_forecaster.py:build --mem-budget 25MB
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import graphopt

BATCH, LENGTH = 512, 32


class Forecaster(nn.Module):
    """Guesses each value of a series from those before it; the loss is its mean squared error."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(1, width)
        self.head = nn.Linear(width, 1)

    def forward(self, series: Tensor) -> Tensor:
        hidden = memory = series.new_zeros(len(series), self.cell.hidden_size)
        guesses = []
        for now in series[:, :-1].split(1, dim=1):
            hidden, memory = self.cell(now, (hidden, memory))
            guesses.append(self.head(hidden))
        return F.mse_loss(torch.cat(guesses, 1), series[:, 1:])


def batches() -> Iterator[tuple[Tensor]]:
    time = torch.arange(LENGTH)
    while True:
        period, phase = 4 + 12 * torch.rand(3, BATCH, 1), 2 * math.pi * torch.rand(3, BATCH, 1)
        waves = torch.sin(2 * math.pi * time / period + phase).sum(0)
        yield (waves + 0.1 * torch.randn(BATCH, LENGTH).cumsum(1),)


def build() -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    return Forecaster(), next(batches())


def main(argv: Sequence[str] | None = None) -> list[float]:
    parser = argparse.ArgumentParser(description="An LSTM forecasts sums of waves.")
    parser.add_argument("--mem-budget", default="25MB")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)

    model, (series,) = build()
    model.to(args.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    example = (series.to(args.device),)
    model = graphopt.optimize(model, mem_budget=args.mem_budget, example_inputs=example, optimizer=optimizer)
    print(model.graphopt.report)

    losses = []
    for step, (series,) in zip(range(args.steps), batches(), strict=False):
        loss = model(series.to(args.device))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        print(f"step {step:3d}  loss {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main()

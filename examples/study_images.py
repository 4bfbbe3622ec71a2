"""A ResNet with BatchNorm learns handwritten digits of 8 × 8 pixels (scikit-learn's), in two thirds of eager's memory.

python examples/study_images.py --mem-budget 700KB
graphopt plan examples/study_images.py:build --mem-budget 700KB

`--mem-budget none` is the same loop without graphopt: it prints the same losses, to the bit.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import graphopt

BATCH, STEPS, WIDTH, RATE, MOMENTUM, WARM_UP = 32, 100, 8, 0.1, 0.9, 10
#: The share of the held-out digits that are named rightly.
GOAL = 0.95


class ResidualBlock(nn.Module):
    """Two convolutions beside a way around them (He et al., 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(outputs) for _ in range(2))
        self.around = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.norms[0](self.first(x)))
        return F.relu(self.norms[1](self.second(inner)) + self.around(x))


class ResNet8(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, WIDTH, 3, 1, 1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU())
        self.blocks = nn.Sequential(
            ResidualBlock(WIDTH, WIDTH, 1), ResidualBlock(WIDTH, 2 * WIDTH, 2), ResidualBlock(2 * WIDTH, 4 * WIDTH, 2)
        )
        self.head = nn.Linear(4 * WIDTH, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(images)).mean((2, 3)))


@cache
def data(held_out: bool) -> tuple[Tensor, Tensor]:
    """Images (1, 8, 8) from 0 to 1, and their digits: every fifth of 1,797 is held out, the others are trained on."""
    digits = load_digits()
    chosen = (torch.arange(len(digits.target)) % 5 == 4) == held_out
    return torch.tensor(digits.images[chosen], dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target[chosen])


def batches(rows: int = BATCH) -> Iterator[tuple[Tensor, Tensor]]:
    images, digits = data(held_out=False)
    while True:
        for chosen in torch.randperm(len(digits)).split(rows):
            if len(chosen) == rows:
                yield images[chosen], digits[chosen]


@torch.no_grad()
def quality(model: nn.Module) -> float:
    """The share of the held-out digits that the model names rightly."""
    images, digits = data(held_out=True)
    guesses = model.eval()(images).argmax(1)
    model.train()
    return float((guesses == digits).double().mean())


def optimizer_of(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=RATE, momentum=MOMENTUM, weight_decay=5e-4)


def rate(step: int, steps: int) -> float:
    """The share of the peak rate: up to it, then down to nothing."""
    return min((step + 1) / WARM_UP, (steps - step) / (steps - WARM_UP))


def build(seed: int = 0) -> tuple[nn.Module, tuple[Tensor, Tensor], Callable[[Tensor, Tensor], Tensor]]:
    torch.manual_seed(seed)
    return ResNet8(), next(batches()), F.cross_entropy


def main(argv: Sequence[str] | None = None) -> list[float]:
    parser = argparse.ArgumentParser(description="A ResNet learns handwritten digits.")
    parser.add_argument("--mem-budget", default="700KB")
    args = parser.parse_args(argv)

    model, (images, _), loss_fn = build()
    optimizer = optimizer_of(model.parameters())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, STEPS))
    if args.mem_budget != "none":
        model = graphopt.optimize(model, args.mem_budget, example_inputs=images, optimizer=optimizer)
        print(model.graphopt.report)

    losses = []
    for step, (images, digits) in zip(range(STEPS), batches(), strict=False):
        loss = loss_fn(model(images), digits)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        scheduler.step()
        losses.append(loss.item())
        if step % 10 == 0:
            print(f"step {step:3d}  loss {losses[-1]:.3f}")
    found = quality(model)
    print(f"{found:.1%} of what is held out named rightly; the goal, {GOAL:.0%}, is {'not ' * (found < GOAL)}reached")
    return losses


if __name__ == "__main__":
    main()

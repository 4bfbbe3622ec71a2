"""ResNet-50, written out in plain torch, learns to tell stripes apart.

python examples/resnet50.py --mem-budget 330MB --steps 12
graphopt plan examples/resnet50.py:build --mem-budget 330MB
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import graphopt

BATCH, SIDE = 16, 96


def conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.reduce = conv_norm(inputs, width, 1)
        self.conv = conv_norm(width, width, 3, stride)
        self.expand = conv_norm(width, 4 * width, 1)
        nn.init.zeros_(self.expand[1].weight)  # every block starts as its shortcut: steady from the first step
        same = stride == 1 and inputs == 4 * width
        self.shortcut = nn.Identity() if same else conv_norm(inputs, 4 * width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv(F.relu(self.reduce(x), inplace=True)), inplace=True)
        return F.relu(self.expand(y) + self.shortcut(x), inplace=True)


class ResNet50(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_norm(3, 64, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1))
        blocks, channels = [], 64
        for stage, depth in enumerate((3, 4, 6, 3)):
            for block in range(depth):
                blocks.append(Bottleneck(channels, 64 * 2**stage, stride=2 if stage and not block else 1))
                channels = 256 * 2**stage
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, classes)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        features = self.blocks(self.stem(images)).mean((2, 3))
        return F.cross_entropy(self.head(features), labels)


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    """Stripes in one of four directions, of any width and colour, in noise."""
    x, y = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="xy")
    along = torch.stack([x, y, x + y, x - y])
    while True:
        labels = torch.randint(4, (BATCH,))
        pitch, phase = 0.5 + torch.rand(BATCH, 1, 1), 6 * torch.rand(BATCH, 1, 1)
        stripes = torch.sin(pitch * along[labels] + phase)[:, None]
        yield stripes * (0.5 + torch.rand(BATCH, 3, 1, 1)) + 0.3 * torch.randn(BATCH, 3, SIDE, SIDE), labels


def build() -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    return ResNet50(classes=4), next(batches())


def main(argv: Sequence[str] | None = None) -> list[float]:
    parser = argparse.ArgumentParser(description="ResNet-50 learns to tell stripes apart.")
    parser.add_argument("--mem-budget", default="330MB")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)

    model, example = build()
    model.to(args.device)
    example = tuple(tensor.to(args.device) for tensor in example)
    model = graphopt.optimize(model, mem_budget=args.mem_budget, example_inputs=example)
    print(model.graphopt.report)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for step, batch in zip(range(args.steps), batches(), strict=False):
        loss = model(*(tensor.to(args.device) for tensor in batch))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        print(f"step {step:3d}  loss {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main()

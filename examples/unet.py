"""A U-Net finds discs in noise. Its loss stays outside the model, in the user's own loop.

python examples/unet.py --mem-budget 40MB --steps 20
graphopt plan examples/unet.py:build --mem-budget 40MB
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import graphopt

BATCH, SIDE = 2, 128


def double_conv(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    def __init__(self, width: int = 16, depth: int = 4) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth + 1)]
        self.first = double_conv(1, width)
        self.down = nn.ModuleList(double_conv(w, 2 * w) for w in widths[:-1])
        self.lift = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, 2) for w in reversed(widths[:-1]))
        self.up = nn.ModuleList(double_conv(2 * w, w) for w in reversed(widths[:-1]))
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        levels = [self.first(images)]
        for down in self.down:
            levels.append(down(F.max_pool2d(levels[-1], 2)))
        x = levels.pop()
        for lift, up in zip(self.lift, self.up, strict=True):
            x = up(torch.cat([levels.pop(), lift(x)], 1))
        return self.head(x)


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    """An image of three discs in strong noise, and where the discs are."""
    grid = torch.linspace(-1, 1, SIDE)
    while True:
        x, y = 1.6 * torch.rand(2, BATCH, 3, 1, 1) - 0.8
        radius = 0.1 + 0.3 * torch.rand(BATCH, 3, 1, 1)
        inside = (grid[None, :] - x) ** 2 + (grid[:, None] - y) ** 2 < radius**2
        masks = inside.any(1, keepdim=True).float()
        yield masks + 0.7 * torch.randn(BATCH, 1, SIDE, SIDE), masks


def build() -> tuple[nn.Module, tuple[Tensor, ...], Callable[[Tensor, Tensor], Tensor]]:
    """The last input is the loss function's target."""
    torch.manual_seed(0)
    return UNet(), next(batches()), F.binary_cross_entropy_with_logits


def main(argv: Sequence[str] | None = None) -> list[float]:
    parser = argparse.ArgumentParser(description="A U-Net finds discs in noise.")
    parser.add_argument("--mem-budget", default="40MB")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)

    model, (images, _), loss_fn = build()
    model.to(args.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model = graphopt.optimize(model, mem_budget=args.mem_budget, example_inputs=images.to(args.device))
    print(model.graphopt.report)

    losses = []
    for step, (images, masks) in zip(range(args.steps), batches(), strict=False):
        loss = loss_fn(model(images.to(args.device)), masks.to(args.device))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        print(f"step {step:3d}  loss {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main()

"""Convolutional networks written out in plain torch."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support.zoo.case import Case, seeded


class Classifier(nn.Module):
    """A body that makes features and a linear head that makes the loss."""

    def __init__(self, body: nn.Module, width: int, classes: int = 10) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        features: Tensor = self.body(images)
        return F.cross_entropy(self.head(features.mean((2, 3))), labels)


def _classify(body: nn.Module, width: int, batch: int, side: int, classes: int = 10) -> Case:
    images, labels = torch.randn(batch, 3, side, side), torch.randint(0, classes, (batch,))
    return Case(Classifier(body, width, classes), (images, labels))


def conv_norm(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1, and a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *conv_norm(inputs, width, 1),
            nn.ReLU(inplace=True),
            *conv_norm(width, width, 3, stride),
            nn.ReLU(inplace=True),
            *conv_norm(width, 4 * width, 1),
        )
        same = stride == 1 and inputs == 4 * width
        self.shortcut = nn.Identity() if same else nn.Sequential(*conv_norm(inputs, 4 * width, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x), inplace=True)


def _resnet(width: int, depths: Sequence[int]) -> tuple[nn.Module, int]:
    layers = [*conv_norm(3, width, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    channels = width
    for stage, depth in enumerate(depths):
        for block in range(depth):
            inner = width * 2**stage
            layers.append(Bottleneck(channels, inner, stride=2 if stage and not block else 1))
            channels = 4 * inner
    return nn.Sequential(*layers), channels


@seeded
def resnet50() -> Case:
    """All 50 layers at a quarter of the width: BatchNorm statistics change once a step."""
    return _classify(*_resnet(16, (3, 4, 6, 3)), batch=8, side=96)


@seeded
def resnet50_anchor() -> Case:
    """The ResNet-50 that the academic planners were measured on."""
    return _classify(*_resnet(64, (3, 4, 6, 3)), batch=8, side=128, classes=1000)


class DenseBlock(nn.Module):
    """Each layer reads the concatenation of all before it."""

    def __init__(self, inputs: int, growth: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(inputs + i * growth),
                nn.ReLU(),
                nn.Conv2d(inputs + i * growth, growth, 3, padding=1, bias=False),
            )
            for i in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        seen = [x]
        for layer in self.layers:
            seen.append(layer(torch.cat(seen, 1)))
        return torch.cat(seen, 1)


@seeded
def densenet() -> Case:
    """Concatenations grow quadratically if all are kept, and cost next to nothing to make again."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1)]
    channels = 16
    for _ in range(3):
        layers += [DenseBlock(channels, 12, 6), nn.Conv2d(channels + 72, (channels + 72) // 2, 1), nn.AvgPool2d(2)]
        channels = (channels + 72) // 2
    return _classify(nn.Sequential(*layers), channels, batch=8, side=32)


class UNet(nn.Module):
    """Skips from each level of the way down to the same level of the way up."""

    def __init__(self, width: int, depth: int, classes: int = 2) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(depth + 1)]
        self.down = nn.ModuleList(self._double(a, b) for a, b in zip([3, *widths], widths, strict=False))
        self.lift = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, 2) for w in reversed(widths[:-1]))
        self.up = nn.ModuleList(self._double(2 * w, w) for w in reversed(widths[:-1]))
        self.head = nn.Conv2d(width, classes, 1)

    @staticmethod
    def _double(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(*conv_norm(inputs, outputs), nn.ReLU(), *conv_norm(outputs, outputs), nn.ReLU())

    def forward(self, images: Tensor, masks: Tensor) -> Tensor:
        x, skips = images, []
        for level in self.down:
            x = level(x if not skips else F.max_pool2d(x, 2))
            skips.append(x)
        for lift, up, skip in zip(self.lift, self.up, reversed(skips[:-1]), strict=True):
            x = up(torch.cat([skip, lift(x)], 1))
        return F.cross_entropy(self.head(x), masks)


def _pixels(side: int) -> tuple[Tensor, Tensor]:
    images = torch.randn(2, 3, side, side)
    return images, (images.mean(1) > 0).long()


@seeded
def unet() -> Case:
    """Long skips: what the first level saves is read last."""
    return Case(UNet(width=8, depth=3), _pixels(96))


@seeded
def unet_anchor() -> Case:
    """The U-Net on which chain planners find no plan."""
    return Case(UNet(width=16, depth=4), _pixels(128))


class InvertedResidual(nn.Module):
    """Wide in the middle, narrow at both ends: the ends are the natural checkpoints."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int = 6) -> None:
        super().__init__()
        wide = inputs * expand
        self.body = nn.Sequential(
            *conv_norm(inputs, wide, 1),
            nn.ReLU6(inplace=True),
            *conv_norm(wide, wide, 3, stride, groups=wide),
            nn.Hardswish(inplace=True),
            *conv_norm(wide, outputs, 1),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return x + y if self.residual else y


@seeded
def mobilenet() -> Case:
    """Depthwise convolutions and in-place activations."""
    plan = [(16, 16, 1), (16, 24, 2), (24, 24, 1), (24, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)]
    body = nn.Sequential(*conv_norm(3, 16, 3, 2), nn.ReLU6(), *(InvertedResidual(*row) for row in plan))
    return _classify(body, 64, batch=4, side=80)


@seeded
def channels_last() -> Case:
    """A U-Net in channels-last order: strides that differ between forward and backward, where `view` may fail."""
    case = Case(UNet(8, 3), _pixels(96))
    images = case.args[0].to(memory_format=torch.channels_last)
    return Case(case.model.to(memory_format=torch.channels_last), (images, case.args[1]))

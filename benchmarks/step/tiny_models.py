"""Models whose kernels take next to no time: what is left of a step is what calls them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel


@dataclass(frozen=True)
class Tiny:
    """`build` gives a model that returns its loss, and a batch for it: the same ones at every call."""

    build: Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]


class Gpt2(nn.Module):
    """transformers' GPT-2 with PyTorch's attention, no dropout and no mask given."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        sizes = {"vocab_size": 64, "n_positions": 16, "n_embd": 16, "n_layer": layers, "n_head": 2}
        no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        config = GPT2Config(**sizes, **no_dropout, use_cache=False, bos_token_id=0, eos_token_id=0)
        config._attn_implementation = "sdpa"
        self.model = GPT2LMHeadModel(config)
        self.model.loss_type = "ForCausalLM"  # unset, transformers warns at every step, and a warning breaks the graph

    def forward(self, ids: Tensor) -> Tensor:
        loss: Tensor = self.model(input_ids=ids, labels=ids, use_cache=False).loss
        return loss


class Decoder(nn.Module):
    """A block of a causal transformer, written out."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        split = self.attention(self.before_attention(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.merge(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp(self.before_mlp(x))


class Loss(nn.Module):
    """The mean square of what layers give."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).square().mean()


class Residual(nn.Module):
    """Convolution, BatchNorm and ReLU in place, twice, around a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_conv_norm(channels), nn.ReLU(inplace=True), *_conv_norm(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + x, inplace=True)


def _conv_norm(channels: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)]


def _seeded(build: Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]) -> Tiny:
    def seeded() -> tuple[nn.Module, tuple[Tensor, ...]]:
        torch.manual_seed(0)
        return build()

    return Tiny(seeded)


def _gpt2(layers: int) -> Tiny:
    return _seeded(lambda: (Gpt2(layers), (torch.randint(0, 64, (1, 8)),)))


TINY: dict[str, Tiny] = {
    "gpt2, 2 layers": _gpt2(2),
    "gpt2, 12 layers": _gpt2(12),
    "decoder, 4 blocks": _seeded(lambda: (Loss(*(Decoder(16, 2) for _ in range(4))), (torch.randn(1, 8, 16),))),
    "mlp, 24 layers": _seeded(
        lambda: (Loss(*(m for _ in range(24) for m in (nn.Linear(16, 16), nn.GELU()))), (torch.randn(4, 16),))
    ),
    "resnet, 8 blocks": _seeded(lambda: (Loss(*(Residual(4) for _ in range(8))), (torch.randn(1, 4, 4, 4),))),
}

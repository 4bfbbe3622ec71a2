"""Small models of several kinds, with their blocks, for ranks that share them out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Sharded:
    """A fresh model, the names of its blocks, the i-th batch of a rank, and the loss of a batch."""

    model: Callable[[], nn.Module]
    blocks_in: str
    batch: Callable[[int, int], tuple[Tensor, ...]]
    loss: Callable[[nn.Module, Sequence[Tensor]], Tensor]
    device: str = "cpu"

    def on(self, device: str) -> Sharded:
        """The same on a device."""
        model, batch = self.model, self.batch

        def moved(i: int, rank: int) -> tuple[Tensor, ...]:
            return tuple(tensor.to(device) for tensor in batch(i, rank))

        return replace(self, model=lambda: model().to(device), batch=moved, device=device)

    def blocks(self, model: nn.Module) -> list[tuple[str, nn.Module]]:
        """The modules that are shared out by themselves, by their paths."""
        return [
            (f"{self.blocks_in}.{name}", block) for name, block in model.get_submodule(self.blocks_in).named_children()
        ]


class Block(nn.Module):
    """x + f(x)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(x)))


class Blocks(nn.Module):
    """Residual blocks, one behind the other."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class ConvBlock(nn.Module):
    """Convolution, batch norm, ReLU, with a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.norm(self.conv(x)))


class Convs(nn.Module):
    """A small ResNet."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, width, 3, padding=1), nn.Linear(width, 10)
        self.blocks = nn.ModuleList(ConvBlock(width) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


class Experts(nn.Module):
    """A dense mixture: each token's experts are weighed by a softmax."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, count)
        self.up = nn.Parameter(torch.randn(count, width, 2 * width) / width**0.5)
        self.down = nn.Parameter(torch.randn(count, 2 * width, width) / (2 * width) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.gate(x).softmax(-1)
        each = torch.einsum("nd,edf->nef", x, self.up)
        return x + torch.einsum("nef,efd,ne->nd", F.gelu(each), self.down, weights)


class Mixture(nn.Module):
    """Layers of experts."""

    def __init__(self, layers: int, experts: int, width: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Experts(experts, width) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def _seeded(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return make()

    return build


def _regression(rows: int, width: int) -> Callable[[int, int], tuple[Tensor, ...]]:
    def batch(i: int, rank: int) -> tuple[Tensor, ...]:
        made = torch.Generator().manual_seed(1000 * i + rank)
        return torch.randn(rows, width, generator=made), torch.randn(rows, width, generator=made)

    return batch


def _images(rows: int, size: int) -> Callable[[int, int], tuple[Tensor, ...]]:
    def batch(i: int, rank: int) -> tuple[Tensor, ...]:
        made = torch.Generator().manual_seed(1000 * i + rank)
        return torch.randn(rows, 3, size, size, generator=made), torch.randint(0, 10, (rows,), generator=made)

    return batch


def _tokens(rows: int, length: int, vocabulary: int) -> Callable[[int, int], tuple[Tensor, ...]]:
    def batch(i: int, rank: int) -> tuple[Tensor, ...]:
        made = torch.Generator().manual_seed(1000 * i + rank)
        return (torch.randint(0, vocabulary, (rows, length), generator=made),)

    return batch


def _gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_layer": 4, "n_embd": 128, "n_head": 4, "vocab_size": 1000, "n_positions": 128}
    return GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False))


def _llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"num_hidden_layers": 4, "hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 352}
    return LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=1000, max_position_embeddings=128, use_cache=False))


def _mse(model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
    return F.mse_loss(model(batch[0]), batch[1])


def _classes(model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def _language(model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
    loss: Tensor = model(input_ids=batch[0], labels=batch[0]).loss
    return loss


MODELS = {
    "blocks": Sharded(_seeded(lambda: Blocks(6, 64)), "blocks", _regression(256, 64), _mse),
    "wide blocks": Sharded(_seeded(lambda: Blocks(6, 256)), "blocks", _regression(256, 256), _mse),
    "gpt2": Sharded(_seeded(_gpt2), "transformer.h", _tokens(4, 128, 1000), _language),
    "llama": Sharded(_seeded(_llama), "model.layers", _tokens(4, 128, 1000), _language),
    "convolutions": Sharded(_seeded(lambda: Convs(6, 64)), "blocks", _images(8, 16), _classes),
    "experts": Sharded(_seeded(lambda: Mixture(4, 4, 64)), "blocks", _regression(256, 64), _mse),
}

"""Small models whose parameters are DTensors over a mesh (copies, shards), and the same models whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn, optim
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn import functional as F

from graphopt.device.storages import local_of

WIDTH, LENGTH, HEADS, CLASSES, BLOCKS, ROWS = 32, 8, 4, 48, 2, 8

Make = Callable[[list[nn.Parameter]], optim.Optimizer]


class Mlp(nn.Module):
    """A block that reads what all ranks have whole: its norm is a plain module."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Attention(nn.Module):
    """Causal, over as many heads as there are on this rank."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        def heads(projected: Tensor) -> Tensor:
            return projected.unflatten(-1, (-1, WIDTH // HEADS)).transpose(1, 2)

        made = F.scaled_dot_product_attention(heads(self.q(x)), heads(self.k(x)), heads(self.v(x)), is_causal=True)
        return self.o(made.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """A layer as Llama's, whose norms run on parts of the sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.first, self.second = Attention(), nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.gate, self.up = (nn.Linear(WIDTH, 2 * WIDTH, bias=False) for _ in range(2))
        self.down = nn.Linear(2 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.first(x))
        h = self.second(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Llama(nn.Module):
    """Embedding, a layer and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(CLASSES, WIDTH), nn.Linear(WIDTH, CLASSES, bias=False)
        self.layers, self.norm = nn.ModuleList([Layer()]), nn.RMSNorm(WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def mlps() -> nn.Module:
    return nn.Sequential(*(Mlp() for _ in range(BLOCKS)))


def whole(name: str) -> nn.Module:
    torch.manual_seed(0)
    return mlps() if name == "mlp" else Llama()


def parallel(name: str, mesh: DeviceMesh) -> nn.Module:
    """The same model over a mesh of one dimension; "llama" with its norms on parts of the sequence."""
    model: Any = whole(name)
    if name == "mlp":
        for block in model:
            parallelize_module(block, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
        return model  # type: ignore[no-any-return]
    plan: dict[str, Any] = {
        "embedding": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
        "norm": SequenceParallel(),
        "head": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
    }
    parallelize_module(model, mesh, plan)
    gathered = PrepareModuleInput(input_layouts=Shard(1), desired_input_layouts=Replicate())
    parts = RowwiseParallel(output_layouts=Shard(1))
    for layer in model.layers:
        plan = {
            **{name: SequenceParallel() for name in ("first", "second")},
            "attention": gathered,
            **{f"attention.{name}": ColwiseParallel() for name in "qkv"},
            "attention.o": parts,
            **{name: ColwiseParallel(input_layouts=Shard(1)) for name in ("gate", "up")},
            "down": parts,
        }
        parallelize_module(layer, mesh, plan)
    return model  # type: ignore[no-any-return]


def mesh_of(shards: int) -> DeviceMesh:
    """All ranks as (copies, shards)."""
    sizes = dist.get_world_size() // shards, shards
    return init_device_mesh("cpu", sizes, mesh_dim_names=("dp", "tp"))


def global_batch(name: str, i: int) -> tuple[Tensor, Tensor]:
    """The i-th batch of all copies together."""
    made = torch.Generator().manual_seed(i)
    if name == "mlp":
        return torch.randn(ROWS, LENGTH, WIDTH, generator=made), torch.randn(ROWS, LENGTH, WIDTH, generator=made)
    ids, labels = torch.randint(0, CLASSES, (2, ROWS, LENGTH), generator=made)
    return ids, labels


def own_batch(name: str, i: int, mesh: DeviceMesh) -> tuple[Tensor, ...]:
    """The rows of this rank's copy."""
    return tuple(each.chunk(mesh["dp"].size())[mesh["dp"].get_local_rank()] for each in global_batch(name, i))


def loss_of(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    return F.mse_loss if name == "mlp" else language_loss


def language_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def shards_of(model: nn.Module) -> list[Tensor]:
    """Copies of what this rank holds of each parameter."""
    return [local_of(parameter.detach()).clone() for parameter in model.parameters()]


def wholes_of(model: nn.Module) -> list[Tensor]:
    """The whole parameters; a collective call."""
    found: list[Any] = [parameter.detach() for parameter in model.parameters()]
    return [each if local_of(each) is each else each.full_tensor() for each in found]

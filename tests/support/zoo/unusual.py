"""Small models, each with one habit that breaks careless graph passes."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tests.support.zoo.case import Case, seeded


class ResidualMLP(nn.Module):
    """A long chain of equal blocks."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
            for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x.square().mean()


@seeded
def residual_mlp() -> Case:
    """32 blocks: the chain on which the square-root rule was made."""
    return Case(ResidualMLP(64, 32), (torch.randn(512, 64),))


class MixtureOfExperts(nn.Module):
    """Tokens go to their two best experts by one-hot products, so that shapes do not depend on data."""

    def __init__(self, width: int, experts: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, experts)
        self.rise = nn.Parameter(torch.randn(experts, width, 2 * width) / width**0.5)
        self.fall = nn.Parameter(torch.randn(experts, 2 * width, width) / (2 * width) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        odds = self.router(x).softmax(-1)
        best, chosen = odds.topk(2, dim=-1)
        dispatch = F.one_hot(chosen, odds.shape[-1]).to(x.dtype)
        routed = torch.einsum("tke,tw->ketw", dispatch, x)
        inner = F.silu(torch.einsum("ketw,ewh->keth", routed, self.rise))
        outer = torch.einsum("keth,ehw->ketw", inner, self.fall)
        return x + torch.einsum("ketw,tke,tk->tw", outer, dispatch, best)


@seeded
def mixture_of_experts() -> Case:
    """Integer indices saved beside floats: `topk`'s choice must not be made twice differently."""
    layers = nn.Sequential(*(MixtureOfExperts(32, 4) for _ in range(4)))
    return Case(layers, (torch.randn(512, 32),), loss=lambda out: out.square().mean())


class EmaAutoencoder(nn.Module):
    """Centres its code on a running mean, estimates its decoder's norm by power iteration, counts its steps."""

    mean: Tensor
    direction: Tensor
    steps: Tensor

    def __init__(self, width: int, code: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, code))
        self.decoder = nn.Linear(code, width)
        self.tail = nn.Sequential(nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))
        self.register_buffer("mean", torch.zeros(code))
        self.register_buffer("direction", F.normalize(torch.randn(code), dim=0))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        code = self.encoder(x)
        weight = self.decoder.weight
        with torch.no_grad():
            self.steps.add_(1)
            self.mean.mul_(0.9).add_(code.mean(0), alpha=0.1)
            self.direction.copy_(F.normalize(weight.T @ (weight @ self.direction), dim=0))
        norm = (weight @ self.direction).norm()
        decoded = F.linear(code - self.mean, weight / norm, self.decoder.bias)
        return F.mse_loss(self.tail(decoded), x)


@seeded
def ema_autoencoder() -> Case:
    """Three buffers change in the forward and are read after they changed: once a step, never in a recomputation."""
    return Case(EmaAutoencoder(64, 16), (torch.randn(8192, 64),))


class InPlace(nn.Module):
    """Writes into values, and into views of values, that others have read."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        means = x.new_zeros(len(self.layers))
        for i, layer in enumerate(self.layers):
            y = layer(x)
            y[:, ::2] += 1
            y[:, 1::2].mul_(0.5)
            y.relu_()
            x = (x + y.view(-1).view_as(y)).add_(0.1)
            means[i] = x.mean()
        return x.square().mean() + means.add_(1).square().sum()


@seeded
def in_place() -> Case:
    """Strided slices, one element of a vector and a whole activation are overwritten."""
    return Case(InPlace(64), (torch.randn(8192, 64),))


class SharedAndFrozen(nn.Module):
    """A tied head, a frozen projection, a layer that nothing calls."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.frozen = nn.Linear(width, width).requires_grad_(False)
        self.unused = nn.Linear(width, width)
        self.mix = nn.Linear(width, width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for _ in range(4):
            x = x + F.gelu(self.mix(F.gelu(self.frozen(x))))
        return F.cross_entropy(self.head(x)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


@seeded
def shared_and_frozen() -> Case:
    """One weight with two uses, one without gradient, one without use."""
    return Case(SharedAndFrozen(256, 64), (torch.randint(0, 256, (16, 128)),))


@dataclass
class Latent:
    mean: Tensor
    log_variance: Tensor


class Outputs(nn.Module):
    """A variational autoencoder that hands back a dict with a tensor, a tuple and a dataclass."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.decoder = nn.Sequential(nn.Linear(width // 2, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor | tuple[Tensor, Tensor] | Latent]:
        mean, log_variance = self.encoder(batch["x"]).chunk(2, -1)
        code = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        guess = self.decoder(code)
        return {"guess": guess, "pair": (code, guess.detach()), "latent": Latent(mean, log_variance)}


@seeded
def structured_outputs() -> Case:
    """Several outputs carry gradients, one is detached, the code is drawn at random."""
    x = torch.randn(8192, 64)

    def loss(out: dict[str, Tensor]) -> Tensor:
        latent = out["latent"]
        assert isinstance(latent, Latent)
        divergence = (latent.mean**2 + latent.log_variance.exp() - latent.log_variance - 1).mean()
        return F.mse_loss(out["guess"], x) + 0.1 * divergence

    return Case(Outputs(64), ({"x": x},), loss=loss, loss_bytes=3 * 2**20)


class Autocast(nn.Module):
    """Half of the layers run in bfloat16."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.low = nn.Sequential(*(nn.Sequential(nn.Linear(width, width), nn.GELU()) for _ in range(4)))
        self.norm = nn.LayerNorm(width)
        self.full = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            y = self.low(x)
        return self.full(self.norm(x + y)).square().mean()


@seeded
def autocast() -> Case:
    """Casts are cheap to repeat and their inputs are twice their outputs."""
    return Case(Autocast(64), (torch.randn(8192, 64),))


class Broken(nn.Module):
    """Two graphs with Python between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.after = ResidualMLP(width, 4).blocks, ResidualMLP(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.before:
            x = x + block(x)
        torch._dynamo.graph_break()
        loss: Tensor = self.after(x)
        return loss


@seeded
def graph_break() -> Case:
    """Broken on purpose: what is planned for one graph must be said, not assumed, of the whole."""
    return Case(Broken(64), (torch.randn(1024, 64),), breaks=1)


class Cube(torch.autograd.Function):
    """A function whose author wrote its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return grad * 3 * x * x


class ByHand(nn.Module):
    """Blocks under the user's own `checkpoint`, attention by `nn.MultiheadAttention`, a user's autograd function."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.utils.parametrizations.spectral_norm(nn.Linear(width, width))
        self.attention = nn.MultiheadAttention(width, 4, dropout=0.1, batch_first=True)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.Dropout(0.2), nn.SiLU(), nn.Linear(2 * width, width))
            for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x, x, x, need_weights=False)[0]
        for block in self.blocks:
            x = x + checkpoint(block, x, use_reentrant=False)
        cubed: Tensor = Cube.apply(self.norm(x))  # type: ignore[no-untyped-call]
        return cubed.square().mean()


@seeded
def by_hand() -> Case:
    """Recomputation with random ops that the user asked for, inside what is planned."""
    return Case(ByHand(64), (torch.randn(16, 128, 64),))

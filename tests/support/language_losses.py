"""Losses of language models over one head, for tests of what runs in pieces of rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

IGNORED = -100

#: logits (batch, length, classes) and targets (batch, length) -> loss
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _flat(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return logits.flatten(0, -2), targets.flatten()


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor, **options: object) -> torch.Tensor:
    return F.cross_entropy(*_flat(logits, targets), **options)  # type: ignore[arg-type]


def class_weights(logits: torch.Tensor, targets: torch.Tensor, **options: object) -> torch.Tensor:
    weight = torch.linspace(0.5, 1.5, logits.shape[-1], dtype=logits.dtype)
    return cross_entropy(logits, targets, weight=weight, **options)


def mean_by_hand(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    losses = cross_entropy(logits, targets, reduction="none")
    kept = (targets.flatten() != IGNORED).to(losses.dtype)
    return (losses * kept).sum() / kept.sum().clamp(min=1)


def token_weights(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    weights = torch.linspace(0, 2, targets.numel(), dtype=logits.dtype)
    return (cross_entropy(logits, targets, reduction="none") * weights).mean()


def z_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return cross_entropy(logits, targets) + 1e-2 * logits.logsumexp(-1).square().mean()


def soft_capped(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return cross_entropy(5 * torch.tanh(logits / 5), targets)


def scaled(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return cross_entropy(logits * 0.125, targets)


def shifted(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return cross_entropy(logits[:, :-1].contiguous(), targets[:, 1:].contiguous())


def transformers_shift(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    targets = F.pad(targets, (0, 1), value=IGNORED)[:, 1:].contiguous()
    return cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets)


def picked_by_hand(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    scores = logits.log_softmax(-1).gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return -(scores * (targets != IGNORED)).sum() / targets.numel()


def soft_targets(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return -(logits.log_softmax(-1) * logits.detach().mul(0.1).softmax(-1)).sum(-1).mean() + 0 * targets.sum()


def padded(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return cross_entropy(logits, targets.clamp(min=0), ignore_index=0)


LOSSES: dict[str, Loss] = {
    "mean": cross_entropy,
    "sum": partial(cross_entropy, reduction="sum"),
    "none and mean by hand": mean_by_hand,
    "token weights": token_weights,
    "label smoothing": partial(cross_entropy, label_smoothing=0.1),
    "class weights": class_weights,
    "class weights and smoothing": partial(class_weights, label_smoothing=0.1),
    "class weights, summed": partial(class_weights, reduction="sum"),
    "padding of class 0": padded,
    "z-loss": z_loss,
    "soft-capped": soft_capped,
    "scaled": scaled,
    "shifted by hand": shifted,
    "shifted as in transformers": transformers_shift,
    "picked by hand": picked_by_hand,
    "soft targets": soft_targets,
}


class Head(nn.Module):
    """Hidden states as a parameter, a head over them, and a loss; with `tied` the head's weight embeds too."""

    def __init__(self, loss: Loss, rows: tuple[int, int], width: int, classes: int, *, bias: bool, tied: bool) -> None:
        super().__init__()
        self.hidden = nn.Parameter(torch.randn(*rows, width))
        self.weight = nn.Parameter(torch.randn(classes, width))
        self.bias = nn.Parameter(torch.randn(classes)) if bias else None
        self.loss, self.tied = loss, tied

    def forward(self, targets: torch.Tensor) -> torch.Tensor:
        hidden = self.hidden
        if self.tied:
            hidden = hidden + F.embedding(targets.clamp(min=0), self.weight)
        return self.loss(F.linear(torch.tanh(hidden), self.weight, self.bias), targets)


def some_targets(rows: tuple[int, int], classes: int, ignored: str = "some") -> torch.Tensor:
    """Targets of which "none", "some" or "all" are ignored."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(0, classes, rows, generator=generator)
    if ignored != "none":
        targets[torch.rand(rows, generator=generator) < (0.3 if ignored == "some" else 2)] = IGNORED
    return targets

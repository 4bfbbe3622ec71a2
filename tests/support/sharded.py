"""A small language model with what is awkward to share out, and trainings of it on several ranks and on one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

import graphopt
from graphopt.device.measure import peak_bytes

CLASSES, WIDTH, LENGTH = 51, 33, 16


class Awkward(nn.Module):
    """Rows that do not divide, fewer rows than ranks, tied and frozen weights, and buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CLASSES, WIDTH)
        self.up, self.norm, self.down = nn.Linear(WIDTH, 77), nn.LayerNorm(77), nn.Linear(77, WIDTH)
        self.scale = nn.Parameter(torch.ones(1))
        self.frozen = nn.Linear(WIDTH, WIDTH)
        self.frozen.weight.requires_grad_(False)
        self.head = nn.Linear(WIDTH, CLASSES, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("shift", torch.full((WIDTH,), 0.1))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids) + self.shift
        x = x + self.down(F.gelu(self.norm(self.up(x)))) * self.scale
        return self.head(self.frozen(x))


def language_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.view(-1, CLASSES), labels.view(-1))


def part(i: int, rank: int, rows: int) -> tuple[Tensor, Tensor]:
    """A rank's rows of the i-th global batch."""
    made = torch.Generator().manual_seed(100 * i + rank)
    ids, labels = torch.randint(0, CLASSES, (2, rows, LENGTH), generator=made)
    labels[0, 5 + rank :] = -100
    return ids, labels


def global_batch(i: int, world: int, rows: int) -> tuple[Tensor, ...]:
    """All ranks' parts of it."""
    return tuple(torch.cat(parts) for parts in zip(*(part(i, rank, rows) for rank in range(world)), strict=True))


def seeded(build: Callable[[], nn.Module] = Awkward) -> nn.Module:
    torch.manual_seed(0)
    return build()


def whole_parameters(step: graphopt.TrainStep) -> dict[str, Tensor]:
    """Copies of the step's whole parameters; a collective call."""
    with step.whole_model() as model:
        return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def step_peak_bytes(step: graphopt.TrainStep, batch: tuple[Tensor, ...], kept: Sequence[Tensor] = ()) -> int:
    """What one step takes on this rank, all that it holds counted, and what is `kept` back; the least of three."""
    held = [*(p.data for p in step.model.parameters()), *step.model.buffers(), *batch, *step.accumulators, *kept]
    held += [t for state in step.optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
    return min(peak_bytes(lambda: step(*batch), held, "cpu") for _ in range(3))


def alone() -> dist.ProcessGroup:
    """A group of this process only, in which `train_step` trains as in one process; a collective call."""
    groups = [dist.new_group([rank]) for rank in range(dist.get_world_size())]
    return groups[dist.get_rank()]


def losses_of(step: graphopt.TrainStep, batches: list[tuple[Tensor, ...]]) -> tuple[list[float], list[Any]]:
    """Of one step after the other: losses and norms."""
    results = [step(*batch) for batch in batches]
    norms = [None if result.grad_norm is None else result.grad_norm.tolist() for result in results]
    return [float(result.loss) for result in results], norms


def ulps(found: Tensor, expected: Tensor) -> float:
    """The largest difference in units of the last place of the largest element."""
    largest = float(expected.abs().max())
    return float((found - expected).abs().max()) / largest / 2.0**-23

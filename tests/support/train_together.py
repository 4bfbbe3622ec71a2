"""Trainings that several processes run, and one process on the same global batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn, optim
from torch.nn import functional as F

import graphopt
from graphopt.device.measure import peak_bytes
from tests.support.loops import Batch, state_of


class Deep(nn.Module):
    """Layers that are worth recomputing: each keeps more than its parameters."""

    def __init__(self, width: int = 32, layers: int = 2, classes: int = 11) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, width)
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(layers)])
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(layers)])
        self.head = nn.Linear(width, classes)

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        x = self.embedding(ids)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = x + F.gelu(layer(norm(x)))
        return F.cross_entropy(self.head(x).flatten(0, 1), labels.flatten())


@dataclass(frozen=True)
class Training:
    """Options of `train_step()`, the rows of every global batch that each rank gets, and the ranks' budgets."""

    options: dict[str, Any] = field(default_factory=dict)
    rows: tuple[int, ...] = (4, 4)
    steps: int = 3
    budgets: tuple[int | None, ...] = (None,) * 4
    build: Callable[[], nn.Module] = Deep
    optimizer: Callable[..., optim.Optimizer] = optim.AdamW

    def batches(self) -> list[Batch]:
        generator = torch.Generator().manual_seed(7)
        found: list[Batch] = []
        for _ in range(self.steps):
            ids, labels = torch.randint(0, 11, (2, sum(self.rows), 64), generator=generator)
            for row in range(len(labels)):
                labels[row, 64 - 9 * row % 64 :] = -100
            found.append(((ids, labels), {}))
        return found

    def step(self, budget_bytes: int | None = None) -> graphopt.TrainStep:
        torch.manual_seed(dist.get_rank() if dist.is_initialized() else 0)
        model = self.build()
        options = {"cost_model": "roofline", "weights": "tokens", **self.options}
        return graphopt.train_step(model, None, self.optimizer(model.parameters(), 1e-2), budget_bytes, **options)


@dataclass(frozen=True)
class Ran:
    """What became of a training."""

    losses: list[float]
    norms: list[Any]
    state: dict[str, np.ndarray[Any, Any]]
    predicted_bytes: int
    measured_bytes: int
    code: str
    recomputed: int


def settled_peak_bytes(run: Callable[[], object], held: Sequence[torch.Tensor]) -> int:
    """The least of three measurements of the same step.

    gloo's thread lets go of a message some time after it has said that it is done, which on a machine with other work
    is later than a step of these small models can wait: a message too many then, in one step and not in the next.
    """
    return min(peak_bytes(run, held, "cpu") for _ in range(3))


def run(training: Training) -> Ran:
    """This process's part of it; all of it where it trains alone."""
    rank = dist.get_rank() if dist.is_initialized() else None
    parts = [part_of(batch, training.rows, rank) for batch in training.batches()]
    step = training.step(None if rank is None else training.budgets[rank])
    step.plan_for(*parts[0])
    losses, norms, peaks = [], [], []
    for args, kwargs in parts:
        out: list[Any] = []
        held = resident(step, (args, kwargs))
        peaks.append(peak_bytes(lambda: out.append(step(*args, **kwargs)), held, "cpu"))  # noqa: B023
        losses.append(float(out[0].loss))
        norms.append(None if out[0].grad_norm is None else out[0].grad_norm.tolist())
    code = "\n".join(micro.module.code for micro in step._last_micros)
    recomputed = sum(len(graph.recomputed) for graph in step.plan.graphs)
    # a tensor would be sent as a handle to memory of a process that is gone
    state = {name: tensor.numpy() for name, tensor in state_of(step.model, step.optimizer).items()}
    return Ran(losses, norms, state, step.plan.peak_bytes, max(peaks), code, recomputed)


def part_of(batch: Batch, rows: Sequence[int], rank: int | None) -> Batch:
    """A rank's rows of a global batch."""
    args, kwargs = batch
    if rank is None:
        return batch
    first = sum(rows[:rank])
    return tuple(arg[first : first + rows[rank]] for arg in args), kwargs


def resident(step: graphopt.TrainStep, batch: Batch) -> list[Tensor]:
    """All that is there before a step and stays."""
    state = [value for entry in step.optimizer.state.values() for value in entry.values()]
    kept = [tensor for held in step._exchange.kept.values() for tensor in held.values()] if step._exchange else []
    leaves = [*step.model.parameters(), *step.model.buffers(), *batch[0], *state, *step.accumulators, *kept]
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

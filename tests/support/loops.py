"""The same training twice: under `train_step()`, and in the loop that a user would write by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import graphopt
from graphopt.step.train_step import TrainStep
from tests.support.zoo import Case, differences
from tests.support.zoo.case import loss_of

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
Batch = tuple[tuple[Any, ...], dict[str, Any]]


class Whole(nn.Module):
    """A case's model with its loss, times a number."""

    def __init__(self, case: Case, times: float = 1.0) -> None:
        super().__init__()
        self.model, self.loss, self.times = case.model, case.loss, times

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.loss(self.model(*args, **kwargs)) * self.times


@dataclass
class EagerLoop:
    """Micro-batches, GradScaler, torch's clipping and the optimizer; the options are `train_step()`'s."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    accumulate: int = 1
    clip: graphopt.ClipNorm | graphopt.ClipValue | None = None
    loss_scale: graphopt.DynamicLossScale | graphopt.ConstantLossScale | None = None

    def __post_init__(self) -> None:
        how = self.loss_scale
        moves = {}
        if isinstance(how, graphopt.DynamicLossScale):
            moves = {
                "growth_factor": how.growth,
                "backoff_factor": how.backoff,
                "growth_interval": how.interval,
            }
        initial = how.initial if how else 1.0
        kind = next(self.model.parameters()).device.type
        self.scaler = torch.amp.GradScaler(kind, init_scale=initial, enabled=how is not None, **moves)

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """One optimizer step on one global batch: the mean loss, and the norm before clipping."""
        self.optimizer.zero_grad()
        losses = []
        for share, part in self.parts((args, kwargs)):
            loss = loss_of(self.model(*part[0], **part[1])) * share
            self.scaler.scale(loss).backward()
            losses.append(loss.detach())
        self.scaler.unscale_(self.optimizer)
        norm = self.clipped()
        if not (self.scaler.is_enabled() and not self.optimizer.state and self.overflowed()):
            self.scaler.step(self.optimizer)
        constant = isinstance(self.loss_scale, graphopt.ConstantLossScale)
        self.scaler.update(self.loss_scale.scale if constant else None)
        return sum(losses[1:], losses[0]), norm

    def parts(self, batch: Batch) -> list[tuple[float, Batch]]:
        """(share of the rows, micro-batch)."""
        leaves, tree = pytree.tree_flatten(batch)
        rows = next(len(leaf) for leaf in leaves if isinstance(leaf, Tensor))
        if self.accumulate == 1:
            return [(1.0, batch)]
        size = -(-rows // self.accumulate)
        cut = [leaf.split(size) if isinstance(leaf, Tensor) else [leaf] * self.accumulate for leaf in leaves]
        sizes = [min(size, rows - first) for first in range(0, rows, size)]
        return [(n / rows, pytree.tree_unflatten([c[i] for c in cut], tree)) for i, n in enumerate(sizes)]

    def overflowed(self) -> bool:
        """Whether a gradient is not finite.

        The first step must then be skipped by hand: torch 2.13's fused SGD with momentum, told to skip it,
        later reads a buffer that nobody wrote.
        """
        gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        return not all(bool(gradient.isfinite().all()) for gradient in gradients)

    def clipped(self) -> Tensor | None:
        """Clip what is in `.grad`; the norm of all gradients or of each group's before."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        if isinstance(self.clip, graphopt.ClipValue):
            nn.utils.clip_grad_value_(parameters, self.clip.value)
        if not isinstance(self.clip, graphopt.ClipNorm):
            return None
        limits = (self.clip.max_norm, self.clip.norm_type, self.clip.error_if_nonfinite)
        if not self.clip.per_group:
            return nn.utils.clip_grad_norm_(parameters, *limits)
        groups = self.optimizer.param_groups
        return torch.stack([nn.utils.clip_grad_norm_(group["params"], *limits) for group in groups])


@dataclass
class Pair:
    """One training under `train_step()` and its eager twin, built alike."""

    step: TrainStep
    loop: EagerLoop
    kernels: graphopt.kernels.choice.Kernels = "stock"
    skipped: int = 0

    def run(self, batches: Sequence[Batch], *, exactly: bool = True) -> None:
        """Train both on the batches; with `exactly` losses, norms and skipped steps must be equal to the bit."""
        for number, (args, kwargs) in enumerate(batches):
            torch.manual_seed(number)
            loss, norm = self.loop(*args, **kwargs)
            after = generators()
            torch.manual_seed(number)
            with graphopt.kernels.use(self.kernels):
                out = self.step(*args, **kwargs)
            assert all(map(torch.equal, generators(), after)), "a generator was left elsewhere"
            self.skipped += out.skipped
            if self.loop.loss_scale is not None:
                assert self.step.loss_scale == self.loop.scaler.get_scale()
            if exactly:
                seen = {"loss": out.loss, **({} if norm is None else {"norm": out.grad_norm})}
                expected = {"loss": loss, **({} if norm is None else {"norm": norm})}
                assert finite(differences(seen, expected)) == {}, f"step {number}: {seen} is not {expected}"

    def differences(self) -> dict[str, float]:
        """Parameters, buffers and optimizer state that are not bitwise equal, with the largest difference."""
        ours = state_of(self.step.model, self.step.optimizer)
        return differences(ours, state_of(self.loop.model, self.loop.optimizer))


def generators() -> list[Tensor]:
    """The states of the CPU's and all CUDA devices' generators."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else ())]


def make_pair(build: Callable[[], nn.Module], optimizer: MakeOptimizer, **options: Any) -> Pair:
    """Two models of `build`, which must give the same weights every time, in train mode."""
    ours, twin = build(), build()
    # nothing is planned without a budget, so no op needs to be measured
    step = graphopt.train_step(ours, None, optimizer(ours.parameters()), cost_model="roofline", **options)
    return Pair(step, EagerLoop(twin, optimizer(twin.parameters()), **options))


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Everything that a step may change, by name."""
    names = {id(p): name for name, p in model.named_parameters()}
    found: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for parameter, state in optimizer.state.items():
        found |= {f"{names[id(parameter)]}: {k}": v for k, v in state.items() if isinstance(v, Tensor)}
    return {name: tensor.detach().clone() for name, tensor in found.items()}


def finite(found: dict[str, float]) -> dict[str, float]:
    """Differences that are numbers: where both sides are NaN there is none."""
    return {name: difference for name, difference in found.items() if difference == difference}


def rolled(batch: Batch, steps: int) -> list[Batch]:
    """`steps` batches of one shape, each the given one moved along its last dimension."""

    def moved(by: int) -> Batch:
        return pytree.tree_map(lambda leaf: leaf.roll(by, -1) if isinstance(leaf, Tensor) else leaf, batch)

    return [moved(by) for by in range(steps)]


def ulps(found: Tensor, expected: Tensor) -> float:
    """The largest difference in units of the last place of the largest element (small ones cancelled)."""
    difference = (found.detach().double() - expected.detach().double()).abs().max()
    return float(difference / expected.detach().abs().max().double() / torch.finfo(expected.dtype).eps)

"""The end of a training step, from scaled gradients to updated parameters, as people write it and as our ops do it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from graphopt import kernels

SCALE = 2.0**10
MAX_NORM = 1.0
LR, BETAS, EPS, WEIGHT_DECAY = 1e-4, (0.9, 0.999), 1e-8, 0.1


@dataclass
class Training:
    """Parameters, gradients and optimizer state of one model, shared by all recipes; fp32 masters of half ones too."""

    shapes: list[tuple[int, ...]]
    half: torch.dtype | None = None
    device: str = "cpu"
    masters: list[nn.Parameter] = field(init=False)
    params: list[nn.Parameter] = field(init=False)
    given: list[Tensor] = field(init=False)
    fused: torch.optim.AdamW = field(init=False)
    foreach: torch.optim.AdamW = field(init=False)
    scaler: torch.amp.GradScaler = field(init=False)
    inverse_scale: Tensor = field(init=False)

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        with torch.device(self.device):
            self.build()

    def build(self) -> None:
        """All of it on the default device."""
        self.masters = [nn.Parameter(torch.randn(shape) * 0.02) for shape in self.shapes]
        self.params = self.masters if self.half is None else [nn.Parameter(p.to(self.half)) for p in self.masters]
        self.given = [torch.randn_like(p) for p in self.params]
        for param, gradient in zip(self.params, self.given, strict=True):
            param.grad = gradient.clone()
        options = {"lr": LR, "betas": BETAS, "eps": EPS, "weight_decay": WEIGHT_DECAY}
        self.fused = torch.optim.AdamW(self.masters, fused=True, **options)  # type: ignore[arg-type]
        self.foreach = torch.optim.AdamW(self.masters, foreach=True, **options)  # type: ignore[arg-type]
        for master in self.masters:
            averages = {name: torch.zeros_like(master) for name in ("exp_avg", "exp_avg_sq")}
            self.fused.state[master] = {"step": torch.zeros(()), **averages}
        self.foreach.state = self.fused.state
        self.scaler = torch.amp.GradScaler(self.device, init_scale=SCALE)
        self.scaler.scale(torch.ones(()))
        self.inverse_scale = torch.tensor(1 / SCALE)

    @property
    def elements(self) -> int:
        return sum(p.numel() for p in self.params)

    def refresh(self) -> None:
        """Gradients as the backward left them."""
        for param, gradient in zip(self.params, self.given, strict=True):
            assert param.grad is not None
            param.grad.copy_(gradient)

    def state(self, name: str) -> list[Tensor]:
        return [self.fused.state[master][name] for master in self.masters]


Recipe = Callable[[Training], None]


def unscale_clip_step(training: Training, optimizer: torch.optim.Optimizer) -> None:
    """What torch's documentation shows."""
    _give_masters(training)
    training.scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(training.masters, MAX_NORM, foreach=True)
    training.scaler.step(optimizer)
    training.scaler.update()
    _take_masters(training)


def clip_scaled_step(training: Training) -> None:
    """Clipping at the scaled norm, so that the fused optimizer may unscale."""
    _give_masters(training)
    nn.utils.clip_grad_norm_(training.masters, MAX_NORM * SCALE, foreach=True)
    training.scaler.step(training.fused)
    training.scaler.update()
    _take_masters(training)


def _give_masters(training: Training) -> None:
    if training.half is not None:
        for master, param in zip(training.masters, training.params, strict=True):
            assert param.grad is not None
            master.grad = param.grad.float()


def _take_masters(training: Training) -> None:
    if training.half is not None:
        with torch.no_grad():
            torch._foreach_copy_(training.params, training.masters)
        for master in training.masters:
            master.grad = None


def tail(training: Training) -> None:
    """Ours: the same meaning, in two ops and two scalars."""
    gradients = [p.grad for p in training.params]
    inverse_scale = training.inverse_scale
    norm, found_inf = kernels.gradient_norm(gradients, 2.0)
    factor = (MAX_NORM / (norm * inverse_scale + 1e-6)).clamp(max=1.0)
    states = [training.state(name) for name in ("exp_avg", "exp_avg_sq")]
    copies = training.params if training.half is not None else []
    kernels.adam_(
        *(training.masters, gradients, *states, [], training.state("step"), copies, inverse_scale, factor, found_inf),
        lr=LR,
        beta1=BETAS[0],
        beta2=BETAS[1],
        weight_decay=WEIGHT_DECAY,
        eps=EPS,
        amsgrad=False,
        maximize=False,
        decoupled=True,
    )


EAGER: dict[str, Recipe] = {
    "unscale_, clip_grad_norm_, fused AdamW": lambda t: unscale_clip_step(t, t.fused),
    "unscale_, clip_grad_norm_, foreach AdamW": lambda t: unscale_clip_step(t, t.foreach),
    "clip_grad_norm_ scaled, fused AdamW unscales": clip_scaled_step,
}

"""The ways to train one model on several ranks that `run.py` compares: a name, and how a step is made.

"ddp ..." is DistributedDataParallel in torch's own loop, with a hook of torch's ("torch ...") or of graphopt;
"step ..." is `graphopt.train_step`, which compresses in the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

import graphopt
from graphopt.compression.methods import DGC, QSGD, EightBit, HalfCast, PowerSGD, Threshold, TopK
from graphopt.compression.protocols import wire_bytes

Step = Callable[[Tensor, Tensor], Tensor]
#: torch's PowerSGD hook hangs on gloo with more than one bucket.
ONE_BUCKET_MEGABYTES = 4096
METHODS: dict[str, Any] = {
    "fp16": HalfCast(torch.float16),
    "bf16": HalfCast(torch.bfloat16),
    "8-bit": EightBit(),
    "QSGD 8": QSGD(8),
    "QSGD 4": QSGD(4),
    "top-k 1 %": TopK(0.01),
    "DGC 1 %": DGC(0.01),
    "DGC 0.1 %": DGC(0.001),
    "threshold": Threshold(1e-3, capacity=0.01),
    "PowerSGD 1": PowerSGD(1),
    "PowerSGD 4": PowerSGD(4),
    "auto": "auto",
}
HOOKS = tuple(f"ddp {name}" for name in METHODS)
STEPS = tuple(f"step {name}" for name in METHODS)
TORCH = ("ddp", "ddp torch fp16", "ddp torch PowerSGD 1")
WAYS = (*TORCH, *HOOKS, "step", *STEPS)
SPEED_WAYS = (
    *TORCH,
    *(f"ddp {name}" for name in ("fp16", "8-bit", "top-k 1 %", "DGC 1 %", "PowerSGD 1", "auto")),
    *("step", *(f"step {name}" for name in ("8-bit", "top-k 1 %", "auto"))),
)
LEARNING_WAYS = (
    *TORCH,
    *(f"ddp {name}" for name in ("8-bit", "QSGD 8", "top-k 1 %", "DGC 1 %", "PowerSGD 4")),
    *("step 8-bit", "step DGC 1 %"),
)


@dataclass(frozen=True)
class Training:
    """One step on this rank's part of a batch, returning its loss, and what it says of itself."""

    step: Step
    says: Callable[[], str]


def stated_bytes(way: str, shapes: Sequence[tuple[int, ...]], world: int) -> int:
    """What the method says that a rank sends for gradients of these shapes; 0 where it is not graphopt's own."""
    name = way.partition(" ")[2]
    if way in TORCH[1:] or name == "auto":
        return 0
    return wire_bytes(METHODS[name] if name else None, shapes, world)


def make(way: str, model: nn.Module, optimizer: torch.optim.Optimizer, loss_of: Callable[..., Tensor]) -> Training:
    """The step that `way` names, for a model whose parameters are the same on all ranks."""
    kind, _, name = way.partition(" ")
    if kind == "step":
        whole = graphopt.train_step(model, loss_of, optimizer, compress=METHODS[name] if name else None)
        return Training(lambda *batch: whole(*batch).loss, lambda: "; ".join(whole.report.step.exchange))
    is_torch = name.startswith("torch")
    wrapped = DistributedDataParallel(
        model, bucket_cap_mb=ONE_BUCKET_MEGABYTES if name == "torch PowerSGD 1" else 25, gradient_as_bucket_view=True
    )
    compression = None
    if is_torch:
        _hook_of_torch(wrapped, name)
    elif name:
        compression = graphopt.compress_ddp(wrapped, METHODS[name])

    def step(inputs: Tensor, targets: Tensor) -> Tensor:
        loss = loss_of(wrapped(inputs), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        return loss.detach()

    return Training(step, lambda: "; ".join(compression.reasons) if compression else "")


def _hook_of_torch(wrapped: DistributedDataParallel, name: str) -> None:
    if name == "torch fp16":
        wrapped.register_comm_hook(None, default_hooks.fp16_compress_hook)
        return
    assert name == "torch PowerSGD 1", name
    state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=1, start_powerSGD_iter=2)
    wrapped.register_comm_hook(state, powerSGD_hook.powerSGD_hook)


def is_dgc(way: str) -> bool:
    """Whether the method brings its own momentum, so that the optimizer must have none."""
    return "DGC" in way

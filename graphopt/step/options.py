"""What is asked of a training step, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from graphopt.base.errors import UsageError
from graphopt.capture.changing_sizes import Dynamic, sizes_of
from graphopt.compression.choose import Auto
from graphopt.compression.methods import Compression
from graphopt.compression.rows import ByRows
from graphopt.lower.compiler import Compiler
from graphopt.passes.window.clip import Clip
from graphopt.passes.window.loss_scale import LossScale
from graphopt.plan.choice import Choice
from graphopt.run.model.request import OnExcess
from graphopt.step.micro_batches.division import Accumulate
from graphopt.step.micro_batches.window import Weights
from graphopt.step.optimizer.optimizer_view import OptimizerView


@dataclass(frozen=True)
class StepOptions:
    """What is done with the gradients of a step."""

    accumulate: Accumulate = 1
    clip: Clip | None = None
    loss_scale: LossScale | None = None
    weights: Weights = None
    update_in_backward: bool | Literal["auto"] = "auto"
    compress: Compression | Auto | None = None
    on_excess: OnExcess = "correct"


@dataclass(frozen=True)
class StepResult:
    """What a step gives back; reading `skipped` or a tensor's number waits for the device.

    `loss` is the mean over the global batch, unscaled; `grad_norm` the norm before clipping, of all
    gradients or a vector of the groups' (None where nobody asked for one); `loss_scale` the scale that
    this step used, 1.0 without one.
    """

    loss: torch.Tensor
    grad_norm: torch.Tensor | None
    found_inf: torch.Tensor | None
    loss_scale: torch.Tensor | float

    @property
    def skipped(self) -> bool:
        """Whether gradients overflowed, or the batch weighed nothing, and nothing was updated."""
        return self.found_inf is not None and bool(self.found_inf != 0)


def nothing_learned(device: torch.device, loss_scale: float) -> StepResult:
    """Every micro-batch weighs nothing: the mean is over nothing, and nothing changes."""
    one, nan = torch.ones((), device=device), torch.full((), float("nan"), device=device)
    return StepResult(nan, None, one, loss_scale)


def check_offload_optimizer(view: OptimizerView) -> None:
    """Raise UsageError where the optimizer's state cannot be elsewhere."""
    if view.elsewhere is not None and view.kind == "step":
        kind = type(view.optimizer).__name__
        raise UsageError(
            f"offload_optimizer= takes SGD, Adam and AdamW, which graphopt updates. This {kind} steps by itself, as it "
            "is another class, has hooks or is differentiable, and wants its state in memory"
        )


def check_compiler_with(compiler: Compiler, *, has_ranks: bool) -> None:
    """Raise UsageError for what Inductor's kernels do not go with."""
    if compiler != "eager" and has_ranks:
        raise UsageError("compiler='inductor' does not go with several processes: use compiler='eager'")


#: Optimizers of torch whose step is one of each element by itself, so that rows, or shards, can step by themselves.
BY_ELEMENT = ("SGD", "Adam", "AdamW", "Adagrad", "Adadelta", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop", "ASGD")


def steps_by_element(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it is one of `BY_ELEMENT` itself."""
    return type(optimizer) in [getattr(torch.optim, name) for name in BY_ELEMENT]


def check_shard_with(shard: object, options: StepOptions, optimizer: torch.optim.Optimizer, choice: Choice) -> None:
    """Raise UsageError for what parameters that are shared out over ranks as `shard` says do not go with."""
    scatters = shard != "optimizer"
    if scatters and not isinstance(options.compress, ByRows | None):
        raise UsageError(
            f"shard= does not go with compress={type(options.compress).__name__}(...): what is scattered can be "
            "compressed by EightBit(), HalfCast() and QSGD(); shard='optimizer' goes with all methods"
        )
    if scatters and options.compress is not None and options.update_in_backward is True:
        raise UsageError(
            "update_in_backward=True does not go with shard= and compress=: ranks agree first that nothing overflowed"
        )
    if choice.compiler == "inductor":
        raise UsageError("shard= does not go with compiler='inductor': use compiler='eager'")
    if choice.offload is not None:
        raise UsageError("shard= does not go with offload= yet: ranks move parameters, and nothing else")
    if isinstance(shard, str) and options.update_in_backward is True:
        raise UsageError(f"shard={shard!r} does not go with update_in_backward=True: use shard=True")
    if not steps_by_element(optimizer):
        raise UsageError(
            f"shard= shares out rows of parameters, which {type(optimizer).__name__} may not update each by itself; it "
            f"goes with torch.optim's {', '.join(BY_ELEMENT)}"
        )


def check_dynamic_with(dynamic: Dynamic, compiler: Compiler, *, has_ranks: bool) -> None:
    """Raise UsageError for what sizes that are symbols do not go with, and where `dynamic` is no choice of them."""
    sizes_of(dynamic)
    if not dynamic:
        return
    if has_ranks:
        raise UsageError("dynamic= does not go with several processes, which capture each set of shapes by itself")
    if compiler == "inductor":
        raise UsageError("dynamic= does not go with compiler='inductor', which compiles each set of shapes by itself")

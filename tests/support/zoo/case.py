"""What a zoo entry is, and the one training step it is compared by."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


def loss_of(output: Any) -> Tensor:
    """The scalar a model returns, bare or as `.loss`."""
    loss = output if isinstance(output, Tensor) else output.loss
    assert isinstance(loss, Tensor) and loss.dim() == 0, "not a scalar loss"
    return loss


@dataclass(frozen=True)
class Case:
    """A model in train mode, one batch for it, and its loss.

    `loss_bytes` is what a loss outside the model holds beside the model's outputs and their gradients. `breaks` is the
    number of graph breaks that Dynamo makes in its forward. `traced_apart` says that the model's own Python takes
    another branch while it is traced, so that eager is equal to rounding only.
    """

    model: nn.Module
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    loss: Callable[[Any], Tensor] = loss_of
    breaks: int = 0
    loss_bytes: int = 0
    traced_apart: bool = False


def seeded(build: Callable[[], Case]) -> Callable[[], Case]:
    """The same weights and batch at every call, and the caller's generator left as it was."""

    def builder() -> Case:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            case = build()
        case.model.train()
        return case

    builder.__name__ = build.__name__
    builder.__doc__ = build.__doc__
    return builder


def step(case: Case, forward: Callable[..., Any] | None = None, seed: int = 1) -> dict[str, Tensor]:
    """One forward and backward from `seed`, and every tensor by which two executions are told apart.

    `forward` stands in for the model (a compiled one, say). Buffers change, so build a case anew for a second run.
    """
    torch.manual_seed(seed)
    loss = case.loss((case.model if forward is None else forward)(*case.args, **case.kwargs))
    loss.backward()  # type: ignore[no-untyped-call]
    seen = {"loss": loss.detach(), "rng": torch.get_rng_state()}
    seen |= {f"grad {k}": p.grad for k, p in case.model.named_parameters() if p.grad is not None}
    return seen | {f"buffer {k}": b for k, b in case.model.named_buffers()}


def differences(left: dict[str, Tensor], right: dict[str, Tensor]) -> dict[str, float]:
    """The tensors that are not bitwise equal, each with its largest difference (infinite where one side lacks it)."""
    found: dict[str, float] = {}
    for name in left.keys() | right.keys():
        if name not in left or name not in right:
            found[name] = float("inf")
        elif not torch.equal(left[name], right[name]):
            found[name] = float((left[name].double() - right[name].double()).abs().max())
    return found

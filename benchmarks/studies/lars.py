"""LARS (You et al., Large batch training of convolutional networks, 2017), as an ordinary optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


class LARS(torch.optim.Optimizer):
    """SGD with momentum whose rate is scaled for each parameter by |weight| / (|gradient| + decay |weight|).

    `trust` is the paper's η. Parameters of one dimension (biases, BatchNorm's) are stepped by plain SGD.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, momentum: float, weight_decay: float, trust: float
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        gradient, rate = parameter.grad, group["lr"]
        if parameter.dim() > 1:
            gradient = gradient.add(parameter, alpha=group["weight_decay"])
            norm, decayed = parameter.norm(), gradient.norm()
            if norm > 0 and decayed > 0:
                rate = rate * float(group["trust"] * norm / decayed)
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        # the local rate is in the momentum, as in the paper's algorithm 1
        velocity = state["momentum_buffer"].mul_(group["momentum"]).add_(gradient, alpha=rate)
        parameter.sub_(velocity)

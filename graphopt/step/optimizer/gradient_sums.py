"""Where the gradients of a step's micro-batches are summed up."""

from __future__ import annotations

import torch

from graphopt.step.optimizer.optimizer_view import OptimizerView


class SummedGradients:
    """One tensor for each parameter, by name, made when it is first asked for."""

    def __init__(self, view: OptimizerView) -> None:
        self._view = view
        self._by_name: dict[str, torch.Tensor] = {}

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Those that there are."""
        return tuple(self._by_name.values())

    def of(self, name: str, like: torch.Tensor) -> torch.Tensor:
        """That of a parameter, of the dtype of `like`."""
        if name not in self._by_name:
            summed = self._view.summed(name)
            self._by_name[name] = torch.empty_like(summed, dtype=like.dtype, requires_grad=False)
        return self._by_name[name]

    def clear(self) -> None:
        """The parameters are others."""
        self._by_name.clear()

"""A step of a model with fewer layers, captured in the place of one with more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx, nn

from graphopt.graph.captured_graph import CapturedGraph
from graphopt.run.model.loss_module import StepModule

#: Makes the captured graph of the larger model of that of the smaller, which is one of Dynamo's graphs.
Extend = Callable[[CapturedGraph, fx.GraphModule], CapturedGraph]


class ShortStep(StepModule):
    """A step of `model`, which stands for that of `whole`: it is captured, and what is planned is `extend`'s.

    It is never run.
    """

    def __init__(self, model: nn.Module, loss_fn: Callable[..., Any] | None, whole: nn.Module, extend: Extend) -> None:
        super().__init__(model, loss_fn)
        # no child: it is not captured
        self.stands_for = (whole,)
        self.extend = extend


def planned_model(module: nn.Module) -> nn.Module:
    """The model whose parameters, buffers and steps are planned."""
    return module.stands_for[0] if isinstance(module, ShortStep) else module


def extension_of(module: nn.Module) -> Extend | None:
    """What makes the graph that is planned; None where that is the captured one."""
    return module.extend if isinstance(module, ShortStep) else None

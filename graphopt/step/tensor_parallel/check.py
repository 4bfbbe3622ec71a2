"""What a training step of DTensors does not go with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from graphopt.base.errors import UsageError
from graphopt.step.options import BY_ELEMENT, steps_by_element

#: Options that must be as they are by default, and what to do instead.
_REFUSED = {
    "shard": "each rank keeps its shards as they are; to share out more, take a larger mesh for parallelize_module()",
    "compress": "gradients go to the other copies as they are: leave compress= out",
    "compiler": "use compiler='eager'",
    "offload": "leave it out",
    "offload_optimizer": "leave it out",
    "numerics": "each rank may plan other pieces, and what all have whole would drift apart: use numerics='bitwise'",
    "dynamic": "each set of shapes is captured by itself: leave it out",
}


def check_dtensors_with(optimizer: torch.optim.Optimizer, arguments: Mapping[str, Any]) -> None:
    """Raise UsageError for `arguments` of `train_step()`, or an optimizer, that DTensors do not go with."""
    for name, instead in _REFUSED.items():
        if not any(arguments[name] is each for each in (None, False)) and arguments[name] not in ("eager", "bitwise"):
            raise UsageError(
                f"{name}={arguments[name]!r} does not go with tensor parallel models, whose parameters are DTensors: "
                f"{instead}"
            )
    if not steps_by_element(optimizer):
        raise UsageError(
            f"{type(optimizer).__name__} may not update each shard of a parameter by itself, as a model of DTensors "
            f"wants it; it goes with torch.optim's {', '.join(BY_ELEMENT)}"
        )

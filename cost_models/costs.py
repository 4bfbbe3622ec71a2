"""What a cost model says about an op."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch.fx import Node


@dataclass(frozen=True, slots=True)
class OpCost:
    """Price of running one op once.

    `workspace_bytes` is the peak of scratch beyond inputs and outputs while it runs. `storage_bytes`
    has the real size of the storage behind each tensor output, in flattened order; None where the
    op was not run.
    """

    seconds: float
    workspace_bytes: int
    storage_bytes: tuple[int, ...] | None = None


CostModel = Callable[[Sequence[Node]], list[OpCost]]
"""One cost for each node, in their order."""

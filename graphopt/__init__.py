"""graphopt: name a number of bytes, and any PyTorch model trains inside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graphopt.errors import (
    BudgetError,
    BudgetParseError,
    CaptureError,
    GraphoptError,
    PlanMismatchError,
    UsageError,
    VerificationError,
)
from graphopt.plan import Plan

if TYPE_CHECKING:
    from graphopt.api import optimize
    from graphopt.estimates import Estimate, estimate

__version__ = "0.1.0"
__all__ = [
    "BudgetError",
    "BudgetParseError",
    "CaptureError",
    "Estimate",
    "GraphoptError",
    "Plan",
    "PlanMismatchError",
    "UsageError",
    "VerificationError",
    "estimate",
    "optimize",
]


def __getattr__(name: str) -> Any:
    # torch takes a second to import; `graphopt --help` must not
    if name == "optimize":
        from graphopt.api import optimize

        return optimize
    if name in ("Estimate", "estimate"):
        from graphopt import estimates

        return getattr(estimates, name)
    raise AttributeError(f"module 'graphopt' has no attribute {name!r}")

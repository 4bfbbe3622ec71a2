"""graphopt: name a number of bytes, and any PyTorch model trains inside it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from graphopt.base.errors import (
    BudgetError,
    BudgetParseError,
    CaptureError,
    GraphoptError,
    NonFiniteGradientError,
    OffloadError,
    PlanMismatchError,
    RankError,
    UsageError,
    VerificationError,
)
from graphopt.problem.plan import Plan

if TYPE_CHECKING:
    from graphopt.api.estimate import Estimate, estimate
    from graphopt.api.optimize import optimize
    from graphopt.api.optimize_fsdp import optimize_fsdp
    from graphopt.api.to_networkx import to_networkx
    from graphopt.api.train_step import train_step
    from graphopt.compression.choose import Auto
    from graphopt.compression.methods import DGC, QSGD, EightBit, HalfCast, PowerSGD, Threshold, TopK
    from graphopt.ddp.hooks import compress_ddp
    from graphopt.passes.window.clip import ClipNorm, ClipValue
    from graphopt.passes.window.loss_scale import ConstantLossScale, DynamicLossScale
    from graphopt.step.options import StepResult
    from graphopt.step.train_step import TrainStep

__version__ = "0.1.0"
__all__ = [
    "DGC",
    "QSGD",
    "Auto",
    "BudgetError",
    "BudgetParseError",
    "CaptureError",
    "ClipNorm",
    "ClipValue",
    "ConstantLossScale",
    "DynamicLossScale",
    "EightBit",
    "Estimate",
    "GraphoptError",
    "HalfCast",
    "NonFiniteGradientError",
    "OffloadError",
    "Plan",
    "PlanMismatchError",
    "PowerSGD",
    "RankError",
    "StepResult",
    "Threshold",
    "TopK",
    "TrainStep",
    "UsageError",
    "VerificationError",
    "compress_ddp",
    "estimate",
    "optimize",
    "optimize_fsdp",
    "to_networkx",
    "train_step",
]

# torch takes a second to import; `graphopt --help` must not
_LAZY = {
    "optimize": "graphopt.api.optimize",
    "optimize_fsdp": "graphopt.api.optimize_fsdp",
    "Auto": "graphopt.compression.choose",
    "DGC": "graphopt.compression.methods",
    "EightBit": "graphopt.compression.methods",
    "HalfCast": "graphopt.compression.methods",
    "PowerSGD": "graphopt.compression.methods",
    "QSGD": "graphopt.compression.methods",
    "Threshold": "graphopt.compression.methods",
    "TopK": "graphopt.compression.methods",
    "compress_ddp": "graphopt.ddp.hooks",
    "Estimate": "graphopt.api.estimate",
    "estimate": "graphopt.api.estimate",
    "ClipNorm": "graphopt.passes.window.clip",
    "ClipValue": "graphopt.passes.window.clip",
    "ConstantLossScale": "graphopt.passes.window.loss_scale",
    "DynamicLossScale": "graphopt.passes.window.loss_scale",
    "StepResult": "graphopt.step.options",
    "TrainStep": "graphopt.step.train_step",
    "to_networkx": "graphopt.api.to_networkx",
    "train_step": "graphopt.api.train_step",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        # imported behind the caller's seed: what is imported may draw
        with importlib.import_module("graphopt.device.snapshot").generators_kept():
            return getattr(importlib.import_module(_LAZY[name]), name)
    if name == "kernels":  # `graphopt.kernels.use()` before anything of ours has imported it
        return importlib.import_module("graphopt.kernels")
    raise AttributeError(f"module 'graphopt' has no attribute {name!r}")


def __dir__() -> list[str]:
    """With the names that are loaded when they are asked for."""
    return sorted({*globals(), *_LAZY, "kernels"})

"""What tests on a GPU share: the device, its settings, and a file for what they measure."""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# read when CUDA is first used: blocks are cut to what was asked for, and cuBLAS repeats itself
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import pytest
import torch

import graphopt

#: "cpu" runs the same tests where there is no GPU, to see that they are right themselves.
DEVICE = os.environ.get("GRAPHOPT_GPU_TESTS_ON", "cuda")
ON_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs CUDA"),
]


#: A first attempt leaves some numbers on the device, which count as somebody's at the next.
LEFT_BEHIND_BYTES = 128 * 1024


def forget() -> None:
    """Let go of every graph and model of earlier tests: what is allocated counts as somebody's.

    A test that failed has its frames, and what these hold, in what pytest keeps for a debugger.
    """
    for name in ("last_exc", "last_value", "last_traceback", "last_type"):
        sys.__dict__.pop(name, None)
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def note(**figures: Any) -> None:
    """Append a line of JSON to the file that GRAPHOPT_FIGURES names."""
    path = os.environ.get("GRAPHOPT_FIGURES")
    if path:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"test": os.environ.get("PYTEST_CURRENT_TEST", ""), **figures}) + "\n")


def at_least(budget_bytes: int, plan: Callable[[int], Any]) -> Any:
    """`plan(budget)`, at the smallest budget that there is where that is larger."""
    try:
        return plan(budget_bytes)
    except graphopt.BudgetError as error:
        least_bytes = error.minimum_bytes
    forget()
    return plan(least_bytes + LEFT_BEHIND_BYTES)

"""Kernels that repeat themselves to the bit."""

from __future__ import annotations

import torch


def deterministic() -> None:
    """Make two runs of the same kernels the same, so that a difference is ours."""
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False

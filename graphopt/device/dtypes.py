"""Kinds of numbers that are treated alike."""

from __future__ import annotations

import torch

#: Of 2 bytes: sums, norms and updates of them are computed in float32.
HALF = (torch.float16, torch.bfloat16)

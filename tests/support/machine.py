"""A processor of two slow cores, for prices that are to be the same wherever tests run."""

from __future__ import annotations

import torch

from graphopt.cost_models.device_speed import DeviceSpeed, device_speed

#: Rounded from one that was measured, which emulates half precision.
SLOW_CPU = DeviceSpeed(
    matmul_flops_per_second={"float32": 1e11, "float64": 5e10, "bfloat16": 1e10, "float16": 2e9},
    bytes_per_second=1e10,
    transcendentals_per_second=1e9,
    op_seconds=1.5e-6,
)


def speed_of(device: torch.device) -> DeviceSpeed:
    """As `device_speed`, but of a CPU always the same."""
    return SLOW_CPU if device.type == "cpu" else device_speed(device)

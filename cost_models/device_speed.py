"""How fast a device is: measured once by a benchmark of about a second, then read from disk."""

from __future__ import annotations

import math
import platform
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from graphopt.cost_models.cache import cache_path, read_entries, write_entries
from graphopt.device.timing import least_seconds, plain_execution, seconds_of

_KIND = "graphopt.device-speed/1"
_DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "bfloat16", "float16")}
_TOO_SLOW_SECONDS = 0.1
"""For one large product in the benchmark, which is to take about a second in all."""


@dataclass(frozen=True, slots=True)
class DeviceSpeed:
    """Peak rates of a device and the fixed cost of an op on it."""

    matmul_flops_per_second: dict[str, float]
    """By the name of the dtype; float32's stands for those that are missing."""
    bytes_per_second: float
    transcendentals_per_second: float
    op_seconds: float


UNKNOWN_DEVICE = DeviceSpeed({"float32": 19.5e12, "bfloat16": 312e12, "float16": 312e12}, 1.5e12, 1e12, 5e-6)
"""For devices that cannot be run here: an A100's data sheet."""


def at_hand(device: torch.device) -> bool:
    """Whether ops can be run on `device` in this process."""
    return device.type == "cpu" or (device.type == "cuda" and torch.cuda.is_available())


def environment(device: torch.device) -> str:
    """Where a measured time holds: device, threads, PyTorch and the switches that choose kernels."""
    parts = [torch.__version__, device.type, torch.get_float32_matmul_precision()]
    parts.append(f"deterministic={torch.are_deterministic_algorithms_enabled()}")
    if device.type == "cuda":
        parts += [torch.cuda.get_device_name(device), f"benchmark={torch.backends.cudnn.benchmark}"]
    else:
        parts += [_processor(), f"threads={torch.get_num_threads()}", torch.backends.cpu.get_cpu_capability()]
    return " | ".join(parts)


def device_speed(device: torch.device) -> DeviceSpeed:
    """Speed of `device`, measured at the first call on this machine; UNKNOWN_DEVICE where it is not at hand."""
    if not at_hand(device):
        return UNKNOWN_DEVICE
    key = environment(device)
    return _device_speed(device, key, cache_path("device-speed", key))


@cache
def _device_speed(device: torch.device, key: str, path: Path) -> DeviceSpeed:
    known = _valid(read_entries(path, _KIND, key))
    if known is not None:
        return known
    with plain_execution(device):
        speed = _benchmark(device)
    write_entries(path, _KIND, key, asdict(speed))
    return speed


def _benchmark(device: torch.device) -> DeviceSpeed:
    big = device.type == "cuda"
    flops = {name: rate for name, dtype in _DTYPES.items() if (rate := _matmul_rate(device, dtype, big))}
    source = torch.ones(2**26 if big else 2**22, device=device)
    target = torch.empty_like(source)
    copied_bytes = 2 * source.untyped_storage().nbytes()
    small = torch.ones(8, device=device)
    return DeviceSpeed(
        matmul_flops_per_second=flops,
        bytes_per_second=copied_bytes / least_seconds(lambda: target.copy_(source), device),
        transcendentals_per_second=source.numel() / least_seconds(lambda: torch.tanh(source, out=target), device),
        op_seconds=least_seconds(lambda: torch.neg(small), device),
    )


def _matmul_rate(device: torch.device, dtype: torch.dtype, big: bool) -> float | None:
    size = 4096 if big else 512
    try:
        # Emulated half precision can be a hundred times slower: find that out on a small matrix.
        trial = torch.ones(128, 128, dtype=dtype, device=device)
        if least_seconds(lambda: trial @ trial, device) > _TOO_SLOW_SECONDS / (size / 128) ** 3:
            size = 1024 if big else 128
        matrix = torch.ones(size, size, dtype=dtype, device=device)
        seconds_of(lambda: matrix @ matrix, device)
        return 2 * size**3 / least_seconds(lambda: matrix @ matrix, device)
    except RuntimeError:  # a dtype that the device cannot multiply
        return None


def _valid(data: dict[str, Any]) -> DeviceSpeed | None:
    try:
        speed = DeviceSpeed(**data)
        numbers = [*speed.matmul_flops_per_second.values(), speed.bytes_per_second]
        numbers += [speed.transcendentals_per_second, speed.op_seconds]
        usable = "float32" in speed.matmul_flops_per_second and all(0 < number < math.inf for number in numbers)
        return speed if usable else None
    except (TypeError, AttributeError):
        return None


@cache
def _processor() -> str:
    """The processor's name: two machines may share a home directory."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()

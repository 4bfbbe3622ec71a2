"""Devices and how fast they are, as cost models see them; the link that `offload=` would use."""

from __future__ import annotations

from collections.abc import Iterator

from graphopt.base.errors import UsageError
from graphopt.base.units import format_bytes
from graphopt.cli.doctor.finding import Finding


def torch_itself() -> Iterator[Finding]:
    """PyTorch can be loaded, with what graphopt needs of it; raises what it raises."""
    import torch

    import graphopt.api.optimize  # noqa: F401

    cuda = torch.version.cuda or torch.version.hip
    yield Finding(
        "devices", "PyTorch", f"{torch.__version__}, {f'built for {cuda}' if cuda else 'built for CPUs alone'}"
    )


def speeds() -> Iterator[Finding]:
    """Each device, and its speed: measured at the first call, for about a second, then read from the cache."""
    import torch

    from graphopt.cost_models.device_speed import device_speed
    from graphopt.plan.resident import device_total_bytes

    devices = [torch.device("cpu"), *(torch.device("cuda", i) for i in range(torch.cuda.device_count()))]
    for device in devices:
        speed = device_speed(device)
        rates = ", ".join(f"{dtype} {rate / 1e9:,.0f}" for dtype, rate in speed.matmul_flops_per_second.items())
        text = (
            f"{_name(device)}, {format_bytes(device_total_bytes(device) or 0)}; GFLOP/s: {rates}; "
            f"{speed.bytes_per_second / 1e9:,.1f} GB/s; {speed.op_seconds * 1e6:.1f} µs an operator"
        )
        yield Finding("devices", str(device), text)


def _name(device: object) -> str:
    import torch

    if str(device) == "cpu":
        return f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    return torch.cuda.get_device_name(device)  # type: ignore[arg-type]


def allocator() -> Iterator[Finding]:
    """How a GPU's allocator cuts its blocks."""
    import torch

    from graphopt.device.allocator import cuts_to_size

    if torch.cuda.is_available():
        expandable = (
            "expandable segments" if cuts_to_size(None) else "whole blocks, up to 1 MiB above what is asked for"
        )
        yield Finding("devices", "allocator", f"{torch.cuda.get_allocator_backend()}, {expandable}")


def link() -> Iterator[Finding]:
    """How fast values go to where `offload=` would move them, and come back."""
    import torch

    from graphopt.plan.offload.where import offload_to

    where, device = ("host", torch.device("cuda")) if torch.cuda.is_available() else ("file", torch.device("cpu"))
    try:
        found = offload_to(where, device)
    except UsageError as error:
        yield Finding("devices", f"offload={where!r}", f"cannot be used: {error}")
        return
    assert found is not None
    speeds = found.link.write_bytes_per_second, found.link.read_bytes_per_second
    text = "writes {:.1f} GB/s, reads {:.1f} GB/s".format(*(each / 1e9 for each in speeds))
    yield Finding("devices", f"offload={where!r}", text)

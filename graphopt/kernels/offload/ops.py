"""The ops of values that are moved out of memory, as nodes of a step's graph.

    stow(value, depot) -> token            writing begins; the value stays where it is
    settle(value, token)                   it is written: whoever holds it may let go of it
    fetch(token, ...) -> value             reading begins, into new memory
    arrived(value, token) -> value         it is there: a view of the same memory, made where it is first read

`depot` is a label, as graphs hold no files. Shape, stride, dtype and device are what the value was traced with; what is
fetched has those that it really had.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.fx.node import has_side_effect

from graphopt.kernels.define import define
from graphopt.kernels.offload.depot import Depot, Fetching
from graphopt.kernels.offload.file_depot import FileDepot
from graphopt.kernels.offload.host_depot import HostDepot
from graphopt.kernels.sharding.transport import holders_of

_DEPOTS: dict[str, Depot] = {}
#: What is on its way, by its address.
_ARRIVING: dict[int, tuple[Depot, Fetching]] = {}
#: Of what is on its way, where nobody else holds it: its depot's and its own memory, and what asks for its holders.
_OWN_HOLDERS = 2


def file_depot(folder: Path) -> tuple[str, Depot]:
    """The process's depot in a folder, and its label. Raises UsageError where there can be none."""
    label = f"file {folder.resolve()}"
    if label not in _DEPOTS:
        _DEPOTS[label] = FileDepot(folder)
    return label, _DEPOTS[label]


def host_depot(device: torch.device) -> tuple[str, Depot]:
    """The process's depot in host memory for one GPU, and its label."""
    label = f"host {device}"
    if label not in _DEPOTS:
        _DEPOTS[label] = HostDepot(device)
    return label, _DEPOTS[label]


def use_depot(label: str, depot: Depot) -> None:
    """Let a label stand for a depot, such as a slow one."""
    _DEPOTS[label] = depot


def _stow(value: Tensor, depot: str) -> Tensor:
    _forget_what_nobody_waits_for()
    return _DEPOTS[depot].stow(value)


def _settle(value: Tensor, token: Tensor, depot: str) -> None:  # noqa: ARG001
    _DEPOTS[depot].settle(token)


def _fetch(
    token: Tensor,
    depot: str,
    shape: list[int],  # noqa: ARG001
    stride: list[int],  # noqa: ARG001
    dtype: torch.dtype,  # noqa: ARG001
    device: torch.device,  # noqa: ARG001
) -> Tensor:
    fetching = _DEPOTS[depot].fetch(token)
    _ARRIVING[fetching.memory.data_ptr()] = (_DEPOTS[depot], fetching)
    return fetching.tensor()


def _arrived(value: Tensor, token: Tensor) -> Tensor:
    address = value.untyped_storage().data_ptr()
    if (found := _ARRIVING.get(address)) is not None:
        depot, fetching = found
        try:
            depot.wait(token, fetching)
        finally:
            _ARRIVING.pop(address, None)
    return value


def _forget_what_nobody_waits_for() -> None:
    """A step that raised left what it fetched: its memory may go once nothing is written to it any more."""
    for address, (depot, fetching) in list(_ARRIVING.items()):
        if holders_of(fetching.memory) <= _OWN_HOLDERS:
            depot.abandon(fetching)
            del _ARRIVING[address]


def _fake_fetch(
    token: Tensor,  # noqa: ARG001
    depot: str,  # noqa: ARG001
    shape: list[int],
    stride: list[int],
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    return torch.empty_strided(shape, stride, dtype=dtype, device=device)


def _fake_stow(value: Tensor, depot: str) -> Tensor:  # noqa: ARG001
    return torch.empty(1, dtype=torch.int64)


def _nothing(value: Tensor, token: Tensor, depot: str) -> None:  # noqa: ARG001
    return None


stow = define("stow(Tensor value, str depot) -> Tensor", _stow, _fake_stow)
settle = define("settle(Tensor value, Tensor token, str depot) -> ()", _settle, _nothing)
fetch = define(
    "fetch(Tensor token, str depot, int[] shape, int[] stride, ScalarType dtype, Device device) -> Tensor",
    _fetch,
    _fake_fetch,
)
arrived = define("arrived(Tensor(a) value, Tensor token) -> Tensor(a)", _arrived, lambda value, _: value)
has_side_effect(settle)

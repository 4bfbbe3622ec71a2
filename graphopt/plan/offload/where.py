"""Where values may be moved to, as the user names it, and how fast that is."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from graphopt.base.errors import OffloadError, UsageError
from graphopt.kernels.offload.depot import Depot
from graphopt.kernels.offload.link import DepotLink, measure_link
from graphopt.kernels.offload.ops import file_depot, host_depot

logger = logging.getLogger("graphopt")

#: File systems whose files are in memory.
_IN_MEMORY = ("tmpfs", "ramfs")


@dataclass(frozen=True)
class Offload:
    """A depot by its label, and its link, which is measured once."""

    depot: str
    link: DepotLink


def offload_to(where: object, device: torch.device, option: str = "offload") -> Offload | None:
    """What `offload=`, or another option of the kind, says for a model on a device.

    None; on a GPU "host", its pinned memory; on a CPU "file", among the temporary ones, or the folder that is to have
    the file. Raises UsageError for anything else, and where no file can be made there.
    """
    if where is None or device.type == "meta":
        return None
    if not isinstance(where, (str, Path)):
        raise UsageError(f"{option}: expected 'host', 'file' or a folder, got {where!r}")
    if (where == "host") != (device.type == "cuda"):
        what = "moves values of a GPU" if where == "host" else "moves values in host memory"
        raise UsageError(f"{option}={str(where)!r} {what}, and the model is on {device}")
    try:
        label, depot = host_depot(device) if where == "host" else file_depot(folder_of(where))
    except UsageError as error:
        raise UsageError(f"{option}: {error}") from error
    if where != "host":
        _warn_of_memory(folder_of(where), option)
    try:
        return Offload(label, _link_of(depot, device))
    except OffloadError as error:
        raise UsageError(
            f"{option}: nothing can be moved to {str(where)!r}, where some MiB are written to measure it: {error}"
        ) from error


@cache
def _link_of(depot: Depot, device: torch.device) -> DepotLink:
    """Measured once: what is planned twice in a process must fit twice, and noise would make it another plan."""
    return measure_link(depot, device)


def folder_of(where: str | Path) -> Path:
    """The folder that an option names, or the temporary one for "file". Raises UsageError where there is none."""
    folder = Path(tempfile.gettempdir()) if where == "file" else Path(where)
    if not str(where) or not folder.is_dir():
        raise UsageError(f"{str(where)!r} is no folder; 'file' takes the temporary one")
    return folder


def _warn_of_memory(folder: Path, option: str) -> None:
    if (kind := _kind_of_file_system(folder)) in _IN_MEMORY:
        logger.warning("%s: %s is a %s: what is moved there stays in memory", option, folder, kind)


def _kind_of_file_system(folder: Path) -> str:
    """As the kernel names it; "" where it does not say."""
    mounts = Path("/proc/mounts")
    if not mounts.exists():
        return ""
    lines = (line.split() for line in mounts.read_text(encoding="utf-8").splitlines())
    own = str(folder.resolve())
    found = [(point, kind) for _, point, kind, *_ in lines if own == point or own.startswith(point.rstrip("/") + "/")]
    return max(found, default=("", ""), key=lambda each: len(each[0]))[1]

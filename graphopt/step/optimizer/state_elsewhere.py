"""The optimizer's state in a file or in host memory: which tensors, and how those come there that exist already."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from graphopt.base.units import format_bytes
from graphopt.device.elsewhere import holder_of
from graphopt.kernels.layout import as_laid_out, flat, is_dense
from graphopt.kernels.offload.link import DepotLink
from graphopt.kernels.streaming.state_file import StateFile
from graphopt.kernels.streaming.state_host import StateHost
from graphopt.kernels.streaming.store import StateStore
from graphopt.plan.offload.where import folder_of, offload_to
from graphopt.report.figures import seconds_text

#: Smaller state stays where it is: a transfer by itself takes as long as moving so many bytes.
_LEAST_BYTES = 2**15


@dataclass(frozen=True)
class StateElsewhere:
    """A store of state, the link to it, and what it is called."""

    store: StateStore
    link: DepotLink
    label: str

    def takes(self, stepped: Tensor) -> bool:
        """Whether the state of a parameter goes there; counts of steps never do."""
        size_bytes = stepped.numel() * stepped.dtype.itemsize
        return size_bytes >= _LEAST_BYTES and stepped.is_floating_point() and is_dense(stepped)

    def new(self, stepped: Tensor) -> Tensor:
        """Zeros like a parameter. Raises OffloadError where there is no room."""
        return self.store.new(stepped.detach())

    def adopt(self, state: dict[str, object], stepped: Tensor, keys: Iterable[str]) -> None:
        """Move what a parameter's state has of these keys there, where it is not there yet."""
        for key in keys:
            held = state.get(key)
            is_like = isinstance(held, Tensor) and held.shape == stepped.shape and held.dtype == stepped.dtype
            if is_like and holder_of(held) is not self.store:  # type: ignore[arg-type]
                state[key] = self._moved(held, stepped)  # type: ignore[arg-type]

    def heed_loads(self, optimizer: torch.optim.Optimizer, adopt: Callable[[], None]) -> None:
        """What is loaded into the optimizer goes there at once, as long as whoever adopts is there."""
        adopting = weakref.WeakMethod(adopt)

        def loaded(_: torch.optim.Optimizer) -> None:
            if (adopts := adopting()) is not None:
                adopts()

        optimizer.register_load_state_dict_post_hook(loaded)

    def _moved(self, held: Tensor, stepped: Tensor) -> Tensor:
        made = self.new(stepped)
        source = flat(as_laid_out(held.detach(), stepped)).to(stepped.device)
        self.store.finish(self.store.write(made, 0, source))
        return made

    def ways(self, size_bytes: int) -> tuple[tuple[str, str], ...]:
        """What the report says of so many bytes of state, which are read and written back in each step."""
        seconds = self.link.read_seconds(size_bytes) + self.link.write_seconds(size_bytes)
        place = "host memory" if self.label == "host" else "a file"
        moved = (
            f"{format_bytes(size_bytes)} in {place}, there and back in {seconds_text(seconds)} a step beside the update"
        )
        return (("optimizer state", moved),)


def state_elsewhere(where: object, device: torch.device) -> StateElsewhere | None:
    """What `offload_optimizer=` says for a model on a device: as `offload_to`, whose errors it raises."""
    to = offload_to(where, device, "offload_optimizer")
    if to is None:
        return None
    assert isinstance(where, (str, Path))
    store: StateStore = StateHost(device) if where == "host" else StateFile(folder_of(where))
    return StateElsewhere(store, to.link, str(where))

"""The graphs of a plan, lowered, and what they then take."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from graphopt.device.peak_window import peak_window
from graphopt.emit.emit import Emitted
from graphopt.lower.inductor import Lowered, lower
from graphopt.lower.trial import device_of, trial_peak_bytes, trial_peak_bytes_of_whole

logger = logging.getLogger("graphopt")


@dataclass(frozen=True, eq=False)
class LoweredHalves:
    """What to call in place of emitted graphs; a graph that is not among them runs as it is written.

    `peak_bytes` is what forward and backward were measured to allocate beside the forward's inputs, None where that
    cannot be measured; `compile_seconds` is what it took to make them.
    """

    calls: Mapping[fx.GraphModule, Lowered]
    peak_bytes: int | None
    compile_seconds: float


def lower_halves(emitted: Emitted) -> LoweredHalves:
    """Lower the forward and the planned backward; that for all tangents runs rarely, and with eager's kernels."""
    started = time.perf_counter()
    halves = (emitted.forward, emitted.backward)
    calls = (lower(emitted.forward, is_backward=False), lower(emitted.backward, is_backward=True))
    seconds = time.perf_counter() - started
    window = peak_window(device_of(emitted.forward) or torch.device("cpu"))
    peak_bytes = None if window is None else trial_peak_bytes(halves, calls, window)
    logger.info("Inductor compiled a forward and a backward in %.1f s", seconds)
    return LoweredHalves(dict(zip(halves, calls, strict=True)), peak_bytes, seconds)


class LoweredWhole(nn.Module):
    """A forward and backward in one graph, lowered; `peak_bytes` and `compile_seconds` as of `LoweredHalves`."""

    def __init__(self, emitted: fx.GraphModule) -> None:
        super().__init__()
        started = time.perf_counter()
        self._call = lower(emitted, is_backward=True)
        self.compile_seconds = time.perf_counter() - started
        window = peak_window(device_of(emitted) or torch.device("cpu"))
        self.peak_bytes = None if window is None else trial_peak_bytes_of_whole(emitted, self._call, window)
        logger.info("Inductor compiled a micro-batch in %.1f s", self.compile_seconds)

    def forward(self, args: list[Any]) -> Any:
        """Run it on a list of arguments, which is emptied."""
        return self._call(args)

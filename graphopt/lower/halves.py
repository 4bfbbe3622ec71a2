"""The graphs of a plan, lowered, and what they then take."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from graphopt.device.peak_window import CpuWindow, CudaWindow, peak_window
from graphopt.emit.emit import Emitted
from graphopt.graph.roles import EFFECT
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
    peak_bytes = _tried(halves, lambda window: trial_peak_bytes(halves, calls, window))
    logger.info("Inductor compiled a forward and a backward in %.1f s", seconds)
    return LoweredHalves(dict(zip(halves, calls, strict=True)), peak_bytes, seconds)


class LoweredWhole(nn.Module):
    """A forward and backward in one graph, lowered; `peak_bytes` and `compile_seconds` as of `LoweredHalves`."""

    def __init__(self, emitted: fx.GraphModule) -> None:
        super().__init__()
        started = time.perf_counter()
        self._call = lower(emitted, is_backward=True)
        self.compile_seconds = time.perf_counter() - started
        self.peak_bytes = _tried([emitted], lambda window: trial_peak_bytes_of_whole(emitted, self._call, window))
        logger.info("Inductor compiled a micro-batch in %.1f s", self.compile_seconds)

    def forward(self, args: list[Any]) -> Any:
        """Run it on a list of arguments, which is emptied."""
        return self._call(args)


def _tried(graphs: Sequence[fx.GraphModule], trial: Callable[[CpuWindow | CudaWindow], int]) -> int | None:
    """What a trial finds; None where nothing counts bytes, something has effects, or takes no made-up numbers.

    Then the first real step is what shows it.
    """
    window = peak_window(device_of(graphs[0]) or torch.device("cpu"))
    if window is None or any(node.meta.get(EFFECT) for graph in graphs for node in graph.graph.nodes):
        return None
    try:
        return trial(window)
    except Exception as error:  # whatever an operator has against its inputs
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        logger.warning(
            "compiled kernels are not measured before the first step, as they take no made-up numbers: %s", why
        )
        return None

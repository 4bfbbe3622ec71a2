"""A forward without gradients, that shows how much of a model that breaks is outside of its graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from graphopt.device.peak_window import peak_window
from graphopt.report.data import OutsideShare
from graphopt.run.outside_meter import OutsideMeter, clock_of

#: Runs the model: each of its graphs is handed to what is given.
Forward = Callable[[Callable[[Callable[[], Any]], Any]], Any]


def try_forward(forward: Forward, device: torch.device) -> OutsideShare:
    """Run it once; bytes are those on top of what was there before, and None where they cannot be measured."""
    window = peak_window(device)
    start_bytes = window.live_bytes() if window is not None else 0
    peak_bytes = most_bytes = 0
    meter = OutsideMeter(start_bytes, clock_of(device))

    def look(in_graph: bool) -> int:
        nonlocal peak_bytes, most_bytes
        if window is None:
            return 0
        taken = window.take()
        if taken > peak_bytes:
            peak_bytes, most_bytes = taken, meter.bytes_beside() if in_graph else meter.bytes_outside(taken)
        return window.live_bytes()

    def around(run: Callable[[], Any]) -> Any:
        meter.enters(look(in_graph=False))
        result = run()
        meter.leaves(look(in_graph=True))
        return result

    if window is not None:
        window.take()
    meter.restarts(start_bytes)
    result = forward(around)
    meter.ends()
    look(in_graph=False)
    del result
    seconds = meter.seconds
    share = 1 - seconds.in_graphs / seconds.whole if seconds is not None else None
    return OutsideShare(share, most_bytes if window is not None else None, max(peak_bytes - start_bytes, 0), 0)

"""Running something when the backward that is under way has ended."""

from __future__ import annotations

from collections.abc import Callable

import torch


def after_backward(run: Callable[[], None]) -> None:
    """Call `run` at the end of this backward, behind what was to be called there already; it raises what `run` raises.

    To be called inside of a backward, or in such a call at its end. An exception keeps its type.
    """
    torch.autograd.Variable._execution_engine.queue_callback(run)

"""Processes of tests in which the same things are not done again and again: together they took a third of all time."""

from __future__ import annotations

import gc
import logging

import torch
import torch._dynamo.guards


def settle() -> None:
    """To be called once all is imported that tests need."""
    _import_what_captures_need()
    _seed_only_what_is_there()
    # Dynamo flushes the processor's caches at each capture, to log how long guards take
    torch._dynamo.guards.profile_guard_manager = lambda *_: 0.0  # type: ignore[assignment]
    # no collection looks again at what is imported, which stays; it took most of the time of measuring a peak
    gc.collect()
    gc.freeze()


def silence_trace() -> None:
    """Nobody listens to PyTorch's trace of its compilations.

    pytest adds its handlers to every logger that does not propagate. For them all graphs would be printed, and kept.
    """
    trace = logging.getLogger("torch.__trace")
    trace.handlers.clear()
    trace.addHandler = lambda _: None  # type: ignore[method-assign]


def _import_what_captures_need() -> None:
    """The first capture would: half a second in each process."""
    import torch._dynamo.backends.registry
    import torch._dynamo.repro.after_aot
    import torch._functorch.compilers
    import torch._inductor.debug
    import torch._inductor.scheduler
    import torch.distributed.tensor.experimental
    import torch.export._trace

    torch._dynamo.backends.registry.list_backends()


def _seed_only_what_is_there() -> None:
    """For a device that is not there, `manual_seed` keeps every seed, with the stack of the call in words."""
    for device in (torch.cuda, torch.xpu, torch.mtia):
        if not device.is_available():
            device.manual_seed_all = lambda _: None  # type: ignore[assignment]

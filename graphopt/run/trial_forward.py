"""A forward alone of a model that breaks: to meet all of its graphs, or to see how much is outside of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from graphopt.base.errors import GraphoptError
from graphopt.device.peak_window import peak_window
from graphopt.device.snapshot import State, restore, undone
from graphopt.device.storages import tensors_in
from graphopt.report.data import OutsideShare
from graphopt.run.graphs.call_key import Call
from graphopt.run.graphs.meeting_graphs import refuse_to_differentiate
from graphopt.run.phases import Meeting
from graphopt.run.watch.outside_meter import OutsideMeter, clock_of

#: Runs the model's call in a phase.
RunIn = Callable[[Meeting, Call], Any]


def try_forward(model: nn.Module, call: Call, run_in: RunIn) -> OutsideShare:
    """Run a call of a model whose graphs are all met, and leave the model as it was.

    Bytes are those on top of what was there before, and None where they cannot be measured.
    """
    meter = _ForwardMeter(next((tensor.device for tensor in model.parameters()), torch.device("cpu")))
    meeting = Meeting(around=meter.around)
    with undone(model, call):
        meeting.written.keep(tensors_in(call))
        try:
            meter.begins()
            result = run_in(meeting, call)
            share = meter.ends()
            del result
        finally:
            meeting.written.put_back()
    return share


def run_to_meet(model: nn.Module, call: Call, meeting: Meeting, before: State, run_in: RunIn) -> None:
    """Run a call of a model once to meet its graphs, and put the model back as it was `before`.

    What the model raises itself is raised, and leaves it as it is: it ran for real up to there, as it would in eager.
    """
    # code between graphs may write them too
    meeting.written.keep(tensors_in(call))
    try:
        _differentiating_nothing(lambda: run_in(meeting, call))
    except BaseException as error:
        if isinstance(error, GraphoptError):
            meeting.written.put_back()
            restore(model, before)
        raise
    meeting.written.put_back()
    restore(model, before)


def _differentiating_nothing(run: Callable[[], Any]) -> None:
    try:
        run()
    except RuntimeError as error:
        refuse_to_differentiate(error)
        raise


class _ForwardMeter:
    """An OutsideMeter that looks at the device's memory itself."""

    def __init__(self, device: torch.device) -> None:
        self._window = peak_window(device)
        self._clock = clock_of(device)

    def begins(self) -> None:
        self._start_bytes = self._window.live_bytes() if self._window is not None else 0
        self._peak_bytes = self._outside_bytes = 0
        if self._window is not None:
            self._window.take()
        self._meter = OutsideMeter(self._start_bytes, self._clock)

    def around(self, run: Callable[[], Any]) -> Any:
        self._meter.enters(self._look(in_graph=False))
        result = run()
        self._meter.leaves(self._look(in_graph=True))
        return result

    def ends(self) -> OutsideShare:
        self._meter.ends()
        self._look(in_graph=False)
        seconds = self._meter.seconds
        share = 1 - seconds.in_graphs / seconds.whole if seconds is not None else None
        outside_bytes = self._outside_bytes if self._window is not None else None
        return OutsideShare(share, outside_bytes, max(self._peak_bytes - self._start_bytes, 0), 0)

    def _look(self, in_graph: bool) -> int:
        if self._window is None:
            return 0
        taken = self._window.take()
        if taken > self._peak_bytes:
            self._peak_bytes = taken
            self._outside_bytes = self._meter.bytes_beside() if in_graph else self._meter.bytes_outside(taken)
        return self._window.live_bytes()

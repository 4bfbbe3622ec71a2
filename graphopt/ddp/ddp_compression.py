"""What is kept of a DDP model whose communication is compressed, and the thread that does it.

Stages of a protocol never wait inside a future's callback: on gloo such callbacks hold up the very messages that they
wait for. One thread runs all buckets' stages one after the other instead, in the order in which DDP hands them over.
"""

from __future__ import annotations

import math
import queue
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch

from graphopt.base.errors import UsageError
from graphopt.compression.choose import Auto
from graphopt.compression.methods import Compression
from graphopt.compression.residuals import KeptState, of_each_rank, own_state
from graphopt.compression.spelling import from_spelled, spelled
from graphopt.ddp.auto_choice import AutoChoice
from graphopt.ddp.ddp_step import Arrival, DdpStep
from graphopt.device.ranks import Ranks
from graphopt.step.ranks.failure import naming_failures

#: What DDP waits for: a bucket's buffer.
Outcome = torch.futures.Future[torch.Tensor]


class DdpCompression:
    """What `compress_ddp` keeps of a DDP model: the method, and by parameter name what was not sent yet.

    `steps` counts steps (backwards with communication); `sent_bytes` is what this rank sent in the last one.
    """

    def __init__(
        self,
        method: Compression | Auto,
        names: dict[torch.Tensor, str],
        ranks: Ranks | None,
    ) -> None:
        self.method = method
        self.steps = 0
        self.sent_bytes = 0
        self._is_enabled = True
        self._choice = AutoChoice(ranks, method) if isinstance(method, Auto) and ranks is not None else None
        self.names = names
        self._ranks = ranks
        self._state: KeptState = {}
        self._step: DdpStep | None = None
        self._waiting: list[tuple[Arrival, Outcome]] = []
        self._error: BaseException | None = None
        self._jobs: queue.SimpleQueue[partial[None] | None] = queue.SimpleQueue()
        if ranks is not None:
            threading.Thread(target=_work, args=(self._jobs,), name="graphopt compression", daemon=True).start()
            weakref.finalize(self, self._jobs.put, None)

    @property
    def reasons(self) -> tuple[str, ...]:
        """With `Auto`, what was chosen and why, as lines; empty before, and with another method."""
        return self._choice.reasons if self._choice is not None else ()

    def disable(self) -> None:
        """From the next backward on gradients travel whole; what was kept back stays here. All ranks call it."""
        self._is_enabled = False

    def state_dict(self) -> dict[str, Any]:
        """What this rank needs to go on after a restart, to be saved beside the model, one for each rank.

        Tensors are the live ones, as in a module's.
        """
        rank, world = (self._ranks.rank, self._ranks.world) if self._ranks is not None else (0, 1)
        return {
            "method": spelled(self.method),
            "rank": rank,
            "world": world,
            "steps": self.steps,
            "state": {name: dict(kept) for name, kept in self._state.items()},
        }

    def load_state_dict(self, saved: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """Go on from this rank's own `state_dict()`, or, with another number of ranks, from all ranks' of then.

        Then what all of them kept back is shared out evenly: its sum over ranks is what it was. Raises UsageError
        where it was saved with another method, for other parameters or of another number of ranks.
        """
        every = of_each_rank(saved)
        for one in every:
            self._check_method(one["method"])
        shapes = {name: tuple(parameter.shape) for parameter, name in self.names.items()}
        methods = self.method.candidates if isinstance(self.method, Auto) else (self.method,)
        mine = own_state(saved, self._ranks, shapes, lambda _: methods)
        devices = {name: parameter.device for parameter, name in self.names.items()}
        self._state = {
            name: {key: tensor.to(devices[name], copy=True) for key, tensor in kept.items()}
            for name, kept in mine.items()
        }
        self.steps = every[0]["steps"]

    def _check_method(self, saved: Mapping[str, Any] | str) -> None:
        """Once it was saved as text."""
        then = saved if isinstance(saved, str) else repr(from_spelled(saved))
        if then != repr(self.method):
            raise UsageError(f"compression state of {then} cannot be loaded into {self.method}")

    def submit(self, arrival: Arrival, scale: float) -> Outcome:
        """Of the next bucket, whose gradients are times `scale`; what is given is done after the step's last one."""
        device = arrival.buffer.device
        is_cuda = device.type == "cuda"
        future: Outcome = torch.futures.Future(devices=[device] if is_cuda else None)
        stream = torch.cuda.current_stream(device) if is_cuda else None
        self._jobs.put(partial(self._run, arrival, scale, future, stream))
        return future

    def _run(self, arrival: Arrival, scale: float, future: Outcome, stream: torch.cuda.Stream | None) -> None:
        """In the thread of its own, on the stream that made the gradients, which is another one in each thread."""
        with torch.no_grad(), torch.cuda.stream(stream) if stream is not None else nullcontext():
            self._arrived(arrival, scale, future)

    def raise_failure(self) -> None:
        """What went wrong in the step that has just ended, as it was raised; its gradients are NaN on this rank."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _arrived(self, arrival: Arrival, scale: float, future: Outcome) -> None:
        assert self._ranks is not None
        self._waiting.append((arrival, future))
        try:
            if self._error is None:
                with naming_failures(self._ranks):
                    self._take(self._ranks, arrival, scale)
        except BaseException as error:
            self._error, self._step = error, None
        if self._error is not None or arrival.is_last:
            self._answer()

    def _take(self, ranks: Ranks, arrival: Arrival, scale: float) -> None:
        if self._step is None:
            gives_back = self._choice is not None and self._choice.is_settled
            self._step = DdpStep(ranks, self._method_of, self._state, scale, self.steps, gives_back)
        self._step.add(arrival)
        if not arrival.is_last:
            return
        self._step.finish()
        if self._choice is not None and self._is_enabled:
            self._choice.finished(self._step, time.monotonic())
        self.steps += 1
        self.sent_bytes, self._step = self._step.sent_bytes, None

    def _answer(self) -> None:
        """An error in a future reaches the user as a RuntimeError of DDP: it gets NaN, and `raise_failure` is later."""
        waiting, self._waiting = self._waiting, []
        for arrival, future in waiting:
            if self._error is not None:
                arrival.buffer.fill_(math.nan)
            future.set_result(arrival.buffer)

    def _method_of(self, names: tuple[str, ...]) -> Compression | None:
        if not self._is_enabled:
            return None
        if isinstance(self.method, Auto):
            return self._choice.method_of(names) if self._choice is not None else None
        return self.method


def _work(jobs: queue.SimpleQueue[partial[None] | None]) -> None:
    while (job := jobs.get()) is not None:
        job()
        del job  # which knows the DdpCompression, whose end ends this thread

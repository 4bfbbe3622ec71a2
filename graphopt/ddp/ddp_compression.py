"""What is kept of a DDP model whose communication is compressed, and the thread that does it.

Stages of a protocol never wait inside a future's callback: on gloo such callbacks hold up the very messages that they
wait for. One thread runs all buckets' stages one after the other instead, in the order in which DDP hands them over.
"""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch

from graphopt.base.errors import UsageError
from graphopt.compression.choose import Auto
from graphopt.compression.measured_choice import choose_methods
from graphopt.compression.methods import Compression
from graphopt.compression.residuals import KeptState, of_each_rank, own_state
from graphopt.compression.spelling import from_spelled, spelled
from graphopt.ddp.ddp_step import Arrival, DdpStep
from graphopt.device.ranks import Ranks
from graphopt.step.ranks.failure import naming_failures

#: What DDP waits for: a bucket's buffer, or what went wrong.
Outcome = torch.futures.Future[Any]


class DdpCompression:
    """What `compress_ddp` keeps of a DDP model: the method, and by parameter name what was not sent yet.

    `steps` counts steps (backwards with communication); `sent_bytes` is what this rank sent in the last one.
    With `Auto`, `reasons` are the lines that say what was chosen and why.
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
        self.reasons: tuple[str, ...] = ()
        self._is_enabled = True
        self._chosen: dict[tuple[str, ...], Compression | None] = {}
        self.names = names
        self._ranks = ranks
        self._state: KeptState = {}
        self._step: DdpStep | None = None
        self._futures: list[Outcome] = []
        self._jobs: queue.SimpleQueue[partial[None] | None] = queue.SimpleQueue()
        if ranks is not None:
            threading.Thread(target=_work, args=(self._jobs,), name="graphopt compression", daemon=True).start()
            weakref.finalize(self, self._jobs.put, None)

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

    def _arrived(self, arrival: Arrival, scale: float, future: Outcome) -> None:
        assert self._ranks is not None
        self._futures.append(future)
        try:
            if self._step is None:
                self._step = DdpStep(self._ranks, self._method_of, self._state, scale, self.steps)
            with naming_failures(self._ranks):
                self._step.add(arrival)
                if arrival.is_last:
                    self._step.finish()
                    self._choose(self._ranks, self._step)
                    self._finish(self._step)
        except BaseException as error:
            for waiting in self._futures:
                waiting.set_result(error)
            self._step, self._futures = None, []

    def _method_of(self, names: tuple[str, ...]) -> Compression | None:
        if not self._is_enabled:
            return None
        return self._chosen.get(names) if isinstance(self.method, Auto) else self.method

    def _choose(self, ranks: Ranks, step: DdpStep) -> None:
        """For buckets as DDP has them now: it makes them anew after its first step. Until then they travel whole."""
        if not isinstance(self.method, Auto) or self._chosen.keys() == {one.names for one in step.arrivals}:
            return
        choice = choose_methods(ranks, self.method, [one.shapes for one in step.arrivals], step.backward_seconds())
        self._chosen = {one.names: method for one, method in zip(step.arrivals, choice.methods, strict=True)}
        self.reasons = choice.reasons

    def _finish(self, step: DdpStep) -> None:
        futures, self._step, self._futures = self._futures, None, []
        self.steps += 1
        self.sent_bytes = step.sent_bytes
        for future, arrival in zip(futures, step.arrivals, strict=True):
            future.set_result(arrival.buffer)


def _work(jobs: queue.SimpleQueue[partial[None] | None]) -> None:
    while (job := jobs.get()) is not None:
        job()
        del job  # which knows the DdpCompression, whose end ends this thread

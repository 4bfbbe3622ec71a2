"""What a method's kernels cost on this machine, found by running its protocol on a few megabytes without a network."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from graphopt.compression.bucket import Agree, AllGather, Bucket, Message, TensorLike
from graphopt.compression.methods import DGC, Compression
from graphopt.compression.protocols import at_step, protocol_of
from graphopt.compression.residuals import initial_state

#: A megabyte or more a tensor, so that starting a kernel does not count, and more in all than caches hold.
SAMPLE_SHAPE, SAMPLES = (1024, 1024), 4
ROUNDS = 3


@dataclass(frozen=True)
class KernelCost:
    """Seconds for each element of a gradient, and how many messages a bucket sends one after the other."""

    seconds_per_element: float
    messages: int


def kernel_cost(method: Compression, world: int, backend: str, device: torch.device) -> KernelCost:
    """The fastest of a few rounds, as one of `world` ranks that all send the same."""
    sent = at_step(method, method.warmup_steps if isinstance(method, DGC) else 0)
    source = torch.Generator().manual_seed(0)
    gradients = [torch.randn(SAMPLE_SHAPE, generator=source).to(device) for _ in range(SAMPLES)]
    state: dict[str, list[TensorLike]] = {}
    for number, gradient in enumerate(gradients):
        for key, tensor in initial_state(sent, str(number), gradient).items():
            state.setdefault(key, []).append(tensor)
    rounds = []
    for _ in range(1 + ROUNDS):  # the first one builds kernels
        bucket = Bucket(
            shapes=(SAMPLE_SHAPE,) * SAMPLES,
            gradients=[gradient.clone() for gradient in gradients],
            overflow=torch.zeros((), device=device),
            rank=0,
            world=world,
            backend=backend,
            state=state,
        )
        rounds.append(_run(sent, bucket, device))
    elements = SAMPLES * gradients[0].numel()
    return KernelCost(min(seconds for seconds, _ in rounds[1:]) / elements, rounds[0][1])


def _run(method: Compression | None, bucket: Bucket, device: torch.device) -> tuple[float, int]:
    """(seconds, messages) of one run through a protocol; what stands for the network does not count."""
    protocol = protocol_of(method)(bucket)
    seconds, messages, result = 0.0, 0, None
    while True:
        start = _now(device)
        try:
            message = protocol.send(result)
        except StopIteration:
            return seconds + _now(device) - start, messages
        seconds += _now(device) - start
        messages += not isinstance(message, Agree)
        result = _received(message, bucket.world)


def _received(message: Message | Agree, world: int) -> TensorLike:
    if isinstance(message, Agree):
        return None
    return message.tensor.repeat(world) if isinstance(message, AllGather) else message.tensor


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()

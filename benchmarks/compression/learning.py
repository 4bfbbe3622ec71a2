"""What is learned on a real small task: the next byte of the Python manual, guessed by a neural language model."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pydoc_data.topics import topics

import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.compression.network import run_ranks
from benchmarks.compression.ways import is_dgc, make

SEEN_BYTES, BYTE_WIDTH, WIDTH, LENGTH, ROWS = 16, 32, 256, 64, 8
#: Of the peaks 0.2, 0.5 and 1, with plain DDP: 0.5 learned more than 0.2 in 1,000 steps, and 1 broke loose in 3,000.
WARM_UP_STEPS, PEAK_RATE, MOMENTUM = 20, 0.5, 0.9
HELD_OUT_BYTES, HELD_OUT_ROWS = 40_000, 256


@dataclass(frozen=True)
class Learned:
    """Of one way, seed and number of ranks: mean loss on held-out text after the last step, in nats a byte."""

    way: str
    world: int
    seed: int
    steps: int
    held_out_loss: float
    seconds: float


def learn(way: str, world: int, seed: int, steps: int) -> Learned:
    """Train with SGD, momentum and a falling rate; each rank has rows of its own."""
    start = time.perf_counter()
    losses = run_ranks(world, _train, way, seed, steps, timeout=500)
    assert len(set(losses)) == 1, "ranks ended with different parameters"
    return Learned(way, world, seed, steps, losses[0], time.perf_counter() - start)


class Guesser(nn.Module):
    """Bengio et al., A neural probabilistic language model (JMLR 2003), over bytes: the last 16 tell the next."""

    def __init__(self) -> None:
        super().__init__()
        self.byte = nn.Embedding(256, BYTE_WIDTH)
        self.hidden = nn.Linear(SEEN_BYTES * BYTE_WIDTH, WIDTH)
        self.guess = nn.Linear(WIDTH, 256)

    def forward(self, text: Tensor) -> Tensor:
        seen = nn.functional.pad(self.byte(text), (0, 0, SEEN_BYTES - 1, 0)).unfold(1, SEEN_BYTES, 1)
        return self.guess(torch.tanh(self.hidden(seen.flatten(2))))


def loss_of(guesses: Tensor, following: Tensor) -> Tensor:
    return nn.functional.cross_entropy(guesses.flatten(0, 1), following.flatten())


def _train(way: str, seed: int, steps: int) -> float:
    text = torch.tensor(list("\n".join(topics[key] for key in sorted(topics)).encode()))
    held_out, text = text[:HELD_OUT_BYTES], text[HELD_OUT_BYTES:]
    torch.manual_seed(seed)
    model = Guesser()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.0 if is_dgc(way) else MOMENTUM)
    training = make(way, model, optimizer, loss_of)
    torch.manual_seed(1000 * seed + dist.get_rank())
    for number in range(steps):
        optimizer.param_groups[0]["lr"] = _rate(number, steps)
        training.step(*_rows(text, ROWS))
    torch.manual_seed(0)
    with torch.no_grad():
        return float(loss_of(*_guessed(model, _rows(held_out, HELD_OUT_ROWS))))


def _guessed(model: nn.Module, rows: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return model(rows[0]), rows[1]


def _rate(number: int, steps: int) -> float:
    """Rises to the peak, then falls to nothing as half a cosine."""
    if number < WARM_UP_STEPS:
        return PEAK_RATE * (number + 1) / WARM_UP_STEPS
    return PEAK_RATE * (1 + math.cos(math.pi * (number - WARM_UP_STEPS) / (steps - WARM_UP_STEPS))) / 2


def _rows(text: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    starts = torch.randint(len(text) - LENGTH - 1, (rows, 1))
    pieces = text[starts + torch.arange(LENGTH + 1)]
    return pieces[:, :-1], pieces[:, 1:].contiguous()

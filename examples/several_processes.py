"""Two processes train one model on halves of each batch, and send each other gradients in 8 bits instead of 32.

python examples/several_processes.py --mem-budget 16MB --steps 30
torchrun --nproc-per-node 2 examples/several_processes.py --mem-budget 16MB --state /tmp/state
graphopt plan examples/several_processes.py:build --mem-budget 16MB

With --state it saves what it needs to go on, and goes on from there when it is started again.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import graphopt

BATCH, LENGTH, WIDTH, REACH = 32, 48, 128, 5


class Guesser(nn.Module):
    """Guesses the next byte at each place from the last ones before it."""

    def __init__(self) -> None:
        super().__init__()
        self.byte = nn.Embedding(256, WIDTH)
        self.layers = nn.ModuleList(nn.Conv1d(WIDTH, WIDTH, REACH) for _ in range(3))
        self.guess = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, 256))

    def forward(self, text: Tensor) -> Tensor:
        hidden = self.byte(text).transpose(1, 2)
        for layer in self.layers:
            hidden = hidden + nn.functional.gelu(layer(nn.functional.pad(hidden, (REACH - 1, 0))))
        return self.guess(hidden.transpose(1, 2))


def loss_of(guesses: Tensor, following: Tensor) -> Tensor:
    return nn.functional.cross_entropy(guesses.flatten(0, 1), following.flatten())


def batch(number: int) -> tuple[Tensor, Tensor]:
    """This rank's own part of a global batch, which is twice as large with two ranks."""
    text = torch.tensor(list("\n".join(topics.values()).encode()))
    rank = dist.get_rank() if dist.is_initialized() else 0
    source = torch.Generator().manual_seed(1000 * number + rank)
    starts = torch.randint(len(text) - LENGTH - 1, (BATCH, 1), generator=source)
    pieces = text[starts + torch.arange(LENGTH + 1)]
    return pieces[:, :-1], pieces[:, 1:].contiguous()


def build() -> tuple[nn.Module, tuple[Tensor, Tensor], Callable[[Tensor, Tensor], Tensor]]:
    torch.manual_seed(1)
    return Guesser(), batch(0), loss_of


def save(state: dict[str, Any], path: Path) -> None:
    """A file of its own, then one rename: a process that dies in here leaves the last whole state."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def train(args: argparse.Namespace) -> list[float]:
    rank = dist.get_rank()
    model, example, loss_fn = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    step = graphopt.train_step(
        model,
        loss_fn,
        optimizer,
        mem_budget=args.mem_budget,
        example_inputs=example,
        accumulate=2,
        clip=graphopt.ClipNorm(1.0),
        compress=graphopt.EightBit(),
    )
    # what compression keeps back is each rank's own, so each rank has a file
    path = Path(args.state, f"rank{rank}.pt") if args.state else None
    first = 0
    if path and path.exists():
        saved = torch.load(path)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        step.load_state_dict(saved["step"])
        first = saved["steps"]
    losses = []
    for number in range(first, args.steps):
        out = step(*batch(number))
        losses.append(float(out.loss))  # of the global batch: the same on all ranks
        if rank == 0:
            print(f"step {number:3d}  norm {float(out.grad_norm):.2f}  loss {losses[-1]:.3f}", flush=True)
        if path and number % 10 == 9:
            states = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step.state_dict()}
            save({**states, "steps": number + 1}, path)
    return losses


def on_rank(rank: int, store: str, args: argparse.Namespace) -> None:
    """What each of the two processes does that this program starts itself."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    train(args)
    dist.destroy_process_group()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Two processes train one model.")
    parser.add_argument("--mem-budget", default="16MB")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--state", help="a folder to save to and to go on from")
    args = parser.parse_args(argv)
    if "RANK" in os.environ:  # started by torchrun
        dist.init_process_group("gloo")
        train(args)
        dist.destroy_process_group()
        return
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(on_rank, (f"{folder}/store", args), nprocs=2)


if __name__ == "__main__":
    main()

"""An epoch of a tiny language model in somebody's training loop: in eager, inside of a budget, seen from outside."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import graphopt
from graphopt.device.measure import collected_garbage
from graphopt.device.peak_window import CpuWindow

Row = dict[str, list[int]]
#: Trains the model for an epoch, and says what the loss was at each step.
Epoch = Callable[[nn.Module], list[float]]

#: Trains the model for an epoch inside of so many bytes.
EpochInside = Callable[[nn.Module, int], list[float]]

#: Tokens of the batches of most epochs.
TOKENS = 4 * 32


def tiny_gpt2(words: int = 512) -> nn.Module:
    """Two layers of width 64, always with the same weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_layer": 2, "n_embd": 64, "n_head": 4, "vocab_size": words, "n_positions": 64}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))


def rows(count: int = 16, lengths: tuple[int, ...] = (32,), words: int = 512) -> list[Row]:
    """Random tokens, of these lengths in turn."""
    drawn = torch.Generator().manual_seed(1)
    ids = [torch.randint(1, words, (lengths[i % len(lengths)],), generator=drawn).tolist() for i in range(count)]
    return [{"input_ids": each, "labels": each} for each in ids]


def padded(batch: list[Row]) -> dict[str, Tensor]:
    """A batch as long as its longest row."""
    longest = max(len(row["input_ids"]) for row in batch)

    def filled(name: str, value: int) -> Tensor:
        return torch.tensor([row[name] + [value] * (longest - len(row[name])) for row in batch])

    return {
        "input_ids": filled("input_ids", 0),
        "labels": filled("labels", -100),
        "attention_mask": torch.tensor([[1] * n + [0] * (longest - n) for n in (len(r["input_ids"]) for r in batch)]),
    }


@dataclass
class Seen:
    """What an epoch did: its losses and parameters, and the peak of each update, measured from outside.

    `planned` says for each whether something was captured or planned before it, which takes memory of its own.
    """

    losses: list[float] = field(default_factory=list)
    state: dict[str, Tensor] = field(default_factory=dict)
    peaks: list[int] = field(default_factory=list)
    planned: list[bool] = field(default_factory=list)
    told: list[str] = field(default_factory=list)


def seen_in(epoch: Epoch, model: nn.Module, live_bytes: int) -> Seen:
    """Run an epoch; `live_bytes` is what was allocated before there was a model."""
    with warnings.catch_warnings(record=True) as caught, _updates(live_bytes) as seen:
        warnings.simplefilter("always")
        torch.manual_seed(0)
        seen.losses = epoch(model)
    seen.state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    seen.told = [str(each.message) for each in caught if str(each.message).startswith("graphopt: ")]
    return seen


def trained_inside(share: float, epoch: Epoch, build: Callable[[], nn.Module] = tiny_gpt2) -> tuple[Seen, Seen, Any]:
    """An epoch in eager, and one of a model that was optimized for a share of what that took at its peak; the model."""
    return trained_by(
        lambda model, budget_bytes: epoch(graphopt.optimize(model, budget_bytes, cost_model="roofline")),
        share,
        epoch,
        build,
    )


def trained_by(
    inside: EpochInside, share: float, epoch: Epoch, build: Callable[[], nn.Module] = tiny_gpt2
) -> tuple[Seen, Seen, Any]:
    """An epoch in eager, and one that optimizes the model itself, for a share of eager's peak; the model."""
    with collected_garbage():
        live_bytes = CpuWindow().live_bytes()
        eager = seen_in(epoch, build(), live_bytes)
    with collected_garbage():
        live_bytes, budget_bytes = CpuWindow().live_bytes(), int(share * max(eager.peaks))
        model = build()
        return eager, seen_in(lambda given: inside(given, budget_bytes), model, live_bytes), model


def check(eager: Seen, ours: Seen, model: Any, tokens: int = TOKENS) -> None:
    """Bits are eager's; every step was inside of the budget, or the first that was not was told of, and no other."""
    assert ours.losses == eager.losses and len(ours.losses) > 1
    assert [name for name in eager.state if not torch.equal(eager.state[name], ours.state[name])] == []
    budget_bytes = model.graphopt.plan.budget_bytes
    over = [step.measured_bytes > budget_bytes for step in model.graphopt.history]
    told = [message for message in ours.told if "a training step took" in message]
    assert sum(over) == len(told) <= 1, (told, over)
    assert not over[-1]
    # a loader has the next batch at hand while a step runs: ids, labels and a mask, all of 8 bytes
    room = budget_bytes + 2 * 3 * tokens * 8 + 64
    outside = [peak > room for peak, planned in zip(ours.peaks, ours.planned, strict=True) if not planned]
    assert sum(outside) <= sum(over), (budget_bytes, ours.peaks)
    assert any(plan.recomputed for plan in model.graphopt.plan.graphs)


@contextmanager
def _updates(live_bytes: int) -> Iterator[Seen]:
    seen, window, plans = Seen(), CpuWindow(), _Plans()
    logger = logging.getLogger("graphopt")
    level = logger.level
    logger.addHandler(plans)
    logger.setLevel(logging.INFO)

    def look(*_: object) -> None:
        seen.peaks.append(window.take() - live_bytes)
        seen.planned.append(plans.taken())

    hooks = [register_optimizer_step_pre_hook(look), register_optimizer_step_post_hook(look)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
        logger.setLevel(level)
        logger.removeHandler(plans)


class _Plans(logging.Handler):
    """Whether something was planned since the last look."""

    def __init__(self) -> None:
        super().__init__()
        self._is_planned = False

    def emit(self, record: logging.LogRecord) -> None:
        """A message of graphopt's."""
        self._is_planned = self._is_planned or record.getMessage().startswith("planned ")

    def taken(self) -> bool:
        """And forget it."""
        was, self._is_planned = self._is_planned, False
        return was

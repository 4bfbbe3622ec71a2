"""One variant of one subject: trained with every seed, measured from outside."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
import torch.distributed as dist
from torch import Tensor, nn

import graphopt
from benchmarks.studies.lars import LARS
from benchmarks.studies.subjects import Batch, Subject
from benchmarks.studies.variants import EAGER, Variant
from graphopt.device.measure import peak_bytes

MOMENTUM = 0.9
#: Peak rates of SGD with momentum, and of LARS with four times the batch: the best of those tried with one seed of
#: the plain loop, in factors of three.
SGD_RATE = {"resnet": 0.1, "gpt": 0.3, "bert": 0.03, "translation": 0.3, "patches": 0.1, "lstm": 0.3}
LARS_RATE = {"resnet": 0.4, "gpt": 0.4, "bert": 0.4, "translation": 1.2, "patches": 0.4, "lstm": 0.13}
LARS_TRUST = 0.05
TIMED_ROUNDS = 10
#: How often in a training quality is looked at.
LOOKS = 8
#: Rows of an embedding that at most this share of the batches hit are rare; those that most hit are frequent.
RARE, FREQUENT = 0.05, 0.9


@dataclass(frozen=True)
class Run:
    """One seed: the loss and the scale of each step, which were skipped, how many clipped, and what was reached.

    `qualities` are (steps done, quality), every so often and at the end. `moved` is the mean distance that rare and
    that frequent rows of an embedding moved, where there is one.
    """

    qualities: tuple[tuple[int, float], ...]
    losses: tuple[float, ...]
    scales: tuple[float, ...]
    skipped: tuple[int, ...]
    clipped: int
    moved: tuple[float, float] | None


class Trainer:
    """A variant's step, which every seed begins anew."""

    def __init__(self, subject: Subject, variant: Variant, budget_bytes: int | None = None) -> None:
        self.subject, self.variant, self.budget_bytes = subject, variant, budget_bytes
        self.model = subject.build(0)
        self.optimizer = _optimizer_of(subject, variant, self.model)
        self.peak_rate = self.optimizer.param_groups[0]["lr"] * variant.rate
        self.step: graphopt.TrainStep | None = None
        batch = self.batches(0, 1)[0]
        if variant != EAGER:
            self.step = graphopt.train_step(
                *(self.model, subject.loss_fn, self.optimizer, budget_bytes),
                example_inputs=batch,
                weights=subject.weights,
                **variant.options,
            )
            self._beginning = copy.deepcopy(self.step.state_dict())

    def batches(self, seed: int, count: int) -> list[Batch]:
        """This rank's part of the first global batches."""
        torch.manual_seed(seed)
        rows = self.subject.rows * self.variant.batch
        whole = islice(self.subject.batches(rows), count)
        mine = slice(dist.get_rank(), None, dist.get_world_size()) if dist.is_initialized() else slice(None)
        return [tuple(part[mine].contiguous() for part in batch) for batch in whole]

    def train(self, seed: int, steps: int) -> Run:
        """All steps of one seed, whose number a larger batch divides."""
        count = max(1, steps // self.variant.batch)
        self._begin_anew(seed)
        batches = self.batches(seed, count)
        torch.manual_seed(seed + 1000 * (dist.get_rank() if dist.is_initialized() else 0))
        start = [parameter.detach().clone() for parameter in _embedding(self.model)]
        found, qualities = [], []
        for number, batch in enumerate(batches):
            found.append(self._one(number, count, batch))
            if (number + 1) * LOOKS // count > number * LOOKS // count:
                qualities.append((number + 1, self.subject.quality(self.model)))
        losses, scales, are_skipped, clipped = zip(*found, strict=True)
        skipped = tuple(number for number, is_skipped in enumerate(are_skipped) if is_skipped)
        moved = _moved(start[0], *_embedding(self.model), batches) if start else None
        return Run(tuple(qualities), losses, scales, skipped, sum(clipped), moved)

    def peak_bytes(self) -> int:
        """The highest number of bytes allocated in one more step."""
        batch = self.batches(0, 1)[0]
        state = [value for entry in self.optimizer.state.values() for value in entry.values()]
        sums = self.step.accumulators if self.step else ()
        held = [*self.model.parameters(), *self.model.buffers(), *batch, *state, *sums, *self._kept()]
        # of ranks the least of two: gloo's thread lets go of a message a little after the step
        return min(
            peak_bytes(lambda: self.call(batch), [item for item in held if isinstance(item, Tensor)], "cpu")
            for _ in range(self.variant.ranks)
        )

    def call(self, batch: Batch) -> graphopt.StepResult | Tensor:
        """One step."""
        if self.step is not None:
            return self.step(*batch)
        loss = self.subject.loss_fn(self.model(*batch[:-1]), batch[-1])
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def _one(self, number: int, count: int, batch: Batch) -> tuple[float, float, bool, bool]:
        # by what was seen of the data, so that a larger batch warms up over as much of it
        seen, total = number * self.variant.batch, count * self.variant.batch
        share = self.subject.rate(seen, total) if self.variant.warm_up else (total - seen) / total
        for group in self.optimizer.param_groups:
            group["lr"] = self.peak_rate * share
        out = self.call(batch)
        if isinstance(out, Tensor):
            return float(out), 1.0, False, False
        clip = self.variant.options.get("clip")
        clipped = isinstance(clip, graphopt.ClipNorm) and out.grad_norm is not None and out.grad_norm > clip.max_norm
        return float(out.loss), float(out.loss_scale), out.skipped, bool(clipped)

    def _begin_anew(self, seed: int) -> None:
        self.model.load_state_dict(self.subject.build(seed).state_dict())
        self.optimizer.state.clear()
        if self.step is not None:
            self.step.load_state_dict(copy.deepcopy(self._beginning))

    def _kept(self) -> list[Tensor]:
        kept = self.step.state_dict().get("compression", {"state": {}}) if self.step else {"state": {}}
        return [tensor for held in kept["state"].values() for tensor in held.values()]


def time_ratio(trainer: Trainer, plain: Trainer) -> tuple[float, float]:
    """Processor seconds for a row of a batch, over those of `plain`; and for a step: medians of some rounds.

    The two alternate, so that what else the machine does falls on both.
    """
    batches = [one.batches(0, 1)[0] for one in (trainer, plain)]
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(TIMED_ROUNDS):
        for one, batch, found in zip((trainer, plain), batches, times, strict=True):
            found.append(_processor_seconds(lambda one=one, batch=batch: one.call(batch)))  # type: ignore[misc]
    rows = trainer.variant.batch / plain.variant.batch
    return statistics.median(a / b / rows for a, b in zip(*times, strict=True)), statistics.median(times[0])


def _processor_seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def _optimizer_of(subject: Subject, variant: Variant, model: nn.Module) -> torch.optim.Optimizer:
    own = subject.optimizer_of(model.parameters())
    if variant.optimizer == "own" or (variant.optimizer == "sgd" and isinstance(own, torch.optim.SGD)):
        return own
    if variant.optimizer == "lars":
        return LARS(model.parameters(), LARS_RATE[subject.name], MOMENTUM, weight_decay=5e-4, trust=LARS_TRUST)
    momentum = 0.0 if variant.optimizer == "sgd without momentum" else MOMENTUM
    return torch.optim.SGD(model.parameters(), SGD_RATE[subject.name], momentum)


def _embedding(model: nn.Module) -> list[Tensor]:
    return [module.weight for name, module in model.named_modules() if name == "word"]


def _moved(before: Tensor, after: Tensor, batches: Sequence[Batch]) -> tuple[float, float] | None:
    hits = torch.zeros(len(before))
    for inputs, *_ in batches:
        hits[inputs.unique()] += 1 / len(batches)
    far = (after.detach() - before).norm(dim=1)
    means = (far[(hits > 0) & (hits <= RARE)].mean(), far[hits >= FREQUENT].mean())
    return None if any(math.isnan(mean) for mean in means) else (float(means[0]), float(means[1]))

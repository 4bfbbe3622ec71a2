"""All variants of a study: rows of its table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.studies.subjects import SUBJECTS, Subject
from benchmarks.studies.training import Run, Trainer, time_ratio
from benchmarks.studies.variants import PLAIN, SENT, Variant, variants_of
from graphopt.base.errors import BudgetError
from tests.support.ranks import run_ranks


@dataclass(frozen=True)
class Row:
    """One variant of one model, over all seeds.

    `seconds` is the processor's for a step, `time_ratio` for as many rows of data over the plain step's. `qualities`
    are those at the end, `curves` (steps done, quality) of each seed. `skipped` names steps from 0. `same_losses` says
    for each seed whether all losses are the bits of the plain step's; `scales` are of every step, where there is one.
    """

    model: str
    variant: str
    group: str
    budget_bytes: int | None
    peak_bytes: int
    time_ratio: float
    seconds: float
    sent_bytes: int
    steps: int
    qualities: tuple[float, ...]
    reached: tuple[bool, ...]
    curves: tuple[tuple[tuple[int, float], ...], ...]
    skipped: tuple[tuple[int, ...], ...]
    clipped: tuple[int, ...]
    same_losses: tuple[bool, ...]
    moved: tuple[tuple[float, float] | None, ...]
    scales: tuple[tuple[float, ...], ...]


def ablation(model: str, seeds: Sequence[int], steps: int | None, names: Sequence[str] = ()) -> Iterator[Row]:
    """The rows of one model; `names` picks variants, `steps` is the example's own number where it is None."""
    chosen = [variant for variant in variants_of(model) if not names or variant.name in names]
    together = [variant for variant in chosen if variant.ranks > 1]
    if len(chosen) > len(together):
        yield from alone(SUBJECTS[model](), [variant for variant in chosen if variant.ranks == 1], seeds, steps)
    if together:
        yield from run_ranks(2, on_ranks, model, together, seeds, steps, timeout=1500)[0]


def alone(subject: Subject, chosen: Sequence[Variant], seeds: Sequence[int], steps: int | None) -> Iterator[Row]:
    """Variants in this process, each beside the plain step."""
    plain, runs = _plain(subject, PLAIN, seeds, steps)
    for variant in chosen:
        trainer = plain if variant == PLAIN else within_share(subject, variant, plain)
        yield _row(trainer, plain, seeds, steps, runs)


def on_ranks(model: str, chosen: Sequence[Variant], seeds: Sequence[int], steps: int | None) -> list[Row]:
    """Variants on several ranks: what each of them does."""
    subject = SUBJECTS[model]()
    plain, runs = _plain(subject, SENT, seeds, steps)
    return [
        _row(plain if variant == SENT else Trainer(subject, variant), plain, seeds, steps, runs) for variant in chosen
    ]


def within_share(subject: Subject, variant: Variant, plain: Trainer) -> Trainer:
    """The variant inside of its share of the plain step's peak, or of the least budget above that."""
    if variant.budget_share is None:
        return Trainer(subject, variant)
    assert plain.step is not None
    budget_bytes = int(variant.budget_share * plain.step.plan.peak_bytes)
    try:
        return Trainer(subject, variant, budget_bytes)
    except BudgetError as error:
        assert error.minimum_bytes is not None
        return Trainer(subject, variant, error.minimum_bytes)


def _plain(subject: Subject, variant: Variant, seeds: Sequence[int], steps: int | None) -> tuple[Trainer, list[Run]]:
    plain = Trainer(subject, variant)
    return plain, [plain.train(seed, steps or subject.steps) for seed in seeds]


def _row(trainer: Trainer, plain: Trainer, seeds: Sequence[int], steps: int | None, plain_runs: list[Run]) -> Row:
    subject, variant = trainer.subject, trainer.variant
    count = steps or subject.steps
    runs = plain_runs if trainer is plain else [trainer.train(seed, count) for seed in seeds]
    qualities = tuple(run.qualities[-1][1] for run in runs)
    peak = trainer.peak_bytes()
    ratio, seconds = (1.0, time_ratio(plain, plain)[1]) if trainer is plain else time_ratio(trainer, plain)
    return Row(
        *(subject.name, variant.name, variant.group, trainer.budget_bytes, peak, round(ratio, 3), round(seconds, 5)),
        *(trainer.step.report.step.sent_bytes if trainer.step else 0, len(runs[0].losses)),
        *(qualities, tuple(map(subject.reaches, qualities)), tuple(run.qualities for run in runs)),
        *(tuple(run.skipped for run in runs), tuple(run.clipped for run in runs)),
        tuple(run.losses == other.losses for run, other in zip(runs, plain_runs, strict=True)),
        tuple(run.moved for run in runs),
        tuple(run.scales for run in runs) if "loss_scale" in variant.options else (),
    )


def as_json(row: Row) -> dict[str, Any]:
    """The row as JSON has it, in which all numbers are finite."""

    def plain(value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            return None
        return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value

    return {key: plain(value) for key, value in asdict(row).items()}

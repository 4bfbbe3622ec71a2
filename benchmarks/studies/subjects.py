"""The six models of the three studies, as the examples have them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from examples import study_images, study_series, study_text, study_translation

Batch = tuple[Tensor, ...]


@dataclass(frozen=True)
class Subject:
    """A model, what it is trained on, and what it should reach.

    `quality` is what `unit` says, of what is held out; `rate` the share of the peak rate at (step, steps). `weights`
    is how micro-batches and ranks are weighed: by rows, or by tokens where some rows have more of them than others.
    """

    name: str
    unit: str
    goal: float
    higher_is_better: bool
    steps: int
    rows: int
    build: Callable[[int], nn.Module]
    batches: Callable[[int], Iterator[Batch]]
    loss_fn: Callable[[Tensor, Tensor], Tensor]
    quality: Callable[[nn.Module], float]
    optimizer_of: Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]
    rate: Callable[[int, int], float]
    weights: str | None = None

    def reaches(self, quality: float) -> bool:
        """Whether that is as good as the goal, or better."""
        return quality >= self.goal if self.higher_is_better else quality <= self.goal


def _images() -> Subject:
    study = study_images
    _, _, loss_fn = study.build()
    return Subject(
        *("resnet", "share of digits named rightly", study.GOAL, True, study.STEPS, study.BATCH),
        *(lambda seed: study.build(seed)[0], study.batches, loss_fn),
        *(study.quality, study.optimizer_of, study.rate),
    )


def _text(name: str) -> Subject:
    study = study_text
    unit = {"gpt": "loss a word, in nats", "bert": "share of sources named rightly"}[name]
    return Subject(
        *(name, unit, study.GOALS[name], name == "bert", study.STEPS, study.BATCH),
        *(lambda seed: study.build(name, seed)[0], partial(study.batches, name), study.loss_of),
        *(partial(study.quality, name), study.optimizer_of, study.rate),
    )


def _translation() -> Subject:
    study = study_translation
    return Subject(
        *("translation", "loss a character, in nats", study.GOAL, False, study.STEPS, study.BATCH),
        *(lambda seed: study.build(seed)[0], study.batches, study.loss_of),
        *(study.quality, study.optimizer_of, study.rate, "tokens"),
    )


def _series(name: str) -> Subject:
    study = study_series
    _, _, loss_fn = study.build(name)
    return Subject(
        *(name, "error over seasonal naive's", study.GOALS[name], False, study.STEPS, study.BATCH),
        *(lambda seed: study.build(name, seed)[0], study.batches, loss_fn),
        *(study.quality, study.optimizer_of, study.rate),
    )


#: The models of each study.
STUDIES: dict[str, dict[str, Callable[[], Subject]]] = {
    "images": {"resnet": _images},
    "text": {"gpt": lambda: _text("gpt"), "bert": lambda: _text("bert"), "translation": _translation},
    "series": {"patches": lambda: _series("patches"), "lstm": lambda: _series("lstm")},
}
SUBJECTS = {name: make for models in STUDIES.values() for name, make in models.items()}

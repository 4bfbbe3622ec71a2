"""What others are said to reach: figures from their papers, or measured with their code (see each table).

All overheads are shares of the time of a step in which nothing is recomputed.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """A peer's overhead at a share of the peak of the problem's own order; None where it found no plan."""

    problem: str
    peer: str
    share: float
    overhead: float | None
    note: str = ""
    #: What its solver took to prove it, for this budget alone.
    solver_seconds: float | None = None


def _row(problem: str, peer: str, shares: tuple[float, ...], percents: tuple[float | None, ...]) -> list[Figure]:
    pairs = zip(shares, percents, strict=True)
    return [Figure(problem, peer, share, None if p is None else p / 100) for share, p in pairs]


def _proven(problem: str, percents: tuple[float, float], seconds: tuple[float, float]) -> list[Figure]:
    """Moccasin's optima at nine and eight tenths of the peak."""
    found = zip((0.9, 0.8), percents, seconds, strict=True)
    return [Figure(problem, "Moccasin", share, p / 100, solver_seconds=taken) for share, p, taken in found]


_QUARTERS = (0.7, 0.5, 0.35, 0.25)

WITHOUT_GRADIENTS = [
    *_row("gpt2_anchor", "rotor", _QUARTERS, (10.9, 17.0, 22.7, 26.7)),
    *_row("gpt2_anchor", "Rockmate", _QUARTERS, (4.6, 12.6, 19.7, 24.9)),
    *_row("bert_anchor", "rotor", _QUARTERS, (14.5, 20.4, 24.9, 29.2)),
    *_row("bert_anchor", "Rockmate", _QUARTERS, (11.7, 17.7, 22.7, 26.3)),
    *_row("resnet50_anchor", "rotor", _QUARTERS, (14.1, 20.9, 29.0, 42.0)),
    *_row("resnet50_anchor", "Rockmate", (0.7, 0.5), (13.0, 19.0)),
    Figure("resnet50_anchor", "Rockmate", 0.35, 0.26, "over its budget"),
    Figure("resnet50_anchor", "Rockmate", 0.25, 0.37, "over its budget"),
    *_row("unet_anchor", "rotor", _QUARTERS, (None, None, None, None)),
    Figure("unet_anchor", "Rockmate", 0.7, 0.107, "over its budget"),
    Figure("unet_anchor", "Rockmate", 0.5, 0.22, "over its budget"),
]
"""Rockmate (Zhao et al., ICML 2023) and rotor (Beaumont et al. 2019) on the anchors: their code's own prediction.

Gradients were allocated beforehand and are left out, on both sides.
"""

_TENTHS = (0.8, 0.6, 0.4, 0.3)

ON_INSTANCES = [
    *_row("dtr_resnet32", "DTR", _TENTHS, (2.5, 7.4, 14.0, 17.9)),
    *_row("dtr_transformer", "DTR", _TENTHS, (2.0, 4.4, 9.1, 12.4)),
    *_row("dtr_lstm", "DTR", _TENTHS, (2.7, 4.3, 15.9, 36.5)),
    *_row("dtr_tv_densenet121", "DTR", _TENTHS, (5.4, 11.8, 29.3, 42.6)),
]
"""DTR (Kirisame et al., ICLR 2021), simulated on its own traces."""

OPTIMA = [
    *_proven("checkmate_VGG19_train", (0.10, 4.85), (5.0, 20.0)),
    *_proven("checkmate_vgg_unet_train", (1.13, 1.98), (30.0, 30.0)),
    *_proven("checkmate_segnet_train", (0.10, 0.21), (100.0, 100.0)),
    *_proven("checkmate_fcn_8_vgg_train", (0.03, 0.14), (25.0, 47.0)),
    *_proven("random_layered_n100", (0.79, 2.30), (160.0, 180.0)),
]
"""Proven optima of Moccasin's model (Bartan et al., ICML 2023), with the seconds that its solver took on two cores.

Optimal means two computations of a value at most, first runs in the given order, and a coarse grid of
memory: a better schedule can exist.
"""

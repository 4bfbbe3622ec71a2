"""What is tried on a model: each technique alone, and the combinations that people use."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

import graphopt
from graphopt import ClipNorm, ClipValue, ConstantLossScale, DynamicLossScale

FP16, BF16 = torch.float16, torch.bfloat16
#: Doubled after 20 good steps: a training here has about a hundred.
INTERVAL = 20


@dataclass(frozen=True)
class Variant:
    """One way to train: options of `graphopt.train_step`, and what of the training itself is another.

    `budget_share` is of the peak of the plain step; where nothing runs inside of that, the least budget is taken.
    `batch` multiplies the rows of a batch and divides the number of steps; `rate` multiplies the peak rate. Without
    `warm_up` the rate starts at its peak. `optimizer` is the example's own, "lars" or "sgd". With `ranks` of 2 each
    gets half of every batch.
    """

    name: str
    group: str
    options: dict[str, Any] = field(default_factory=dict)
    budget_share: float | None = None
    batch: int = 1
    rate: float = 1.0
    warm_up: bool = True
    optimizer: str = "own"
    ranks: int = 1


def _scaled(name: str, dtype: torch.dtype, scale: Any = None, **more: Any) -> Variant:
    group = more.pop("group", "loss scale")
    return Variant(name, group, {"autocast": dtype, **({"loss_scale": scale} if scale else {}), **more})


EAGER = Variant("a loop without graphopt", "plain")
PLAIN = Variant("plain", "plain")
ALONE = (
    EAGER,
    PLAIN,
    Variant("checkpoints, 50 %", "memory", budget_share=0.5),
    Variant("checkpoints, 25 %", "memory", budget_share=0.25),
    Variant("accumulate 4", "memory", {"accumulate": 4}),
    Variant("clip norm 0.1", "clip", {"clip": ClipNorm(0.1)}),
    Variant("clip norm 0.3", "clip", {"clip": ClipNorm(0.3)}),
    Variant("clip norm 1", "clip", {"clip": ClipNorm(1.0)}),
    Variant("clip value 0.001", "clip", {"clip": ClipValue(0.001)}),
    Variant("clip value 0.01", "clip", {"clip": ClipValue(0.01)}),
    Variant("clip value 0.1", "clip", {"clip": ClipValue(0.1)}),
)
SCALES = (
    _scaled("bf16, no scale", BF16),
    _scaled("bf16, constant 1024", BF16, ConstantLossScale(1024.0)),
    _scaled("bf16, dynamic from 2¹⁶", BF16, DynamicLossScale(interval=INTERVAL)),
    _scaled("fp16, no scale", FP16),
    _scaled("fp16, constant 1024", FP16, ConstantLossScale(1024.0)),
    _scaled("fp16, dynamic from 2¹⁶", FP16, DynamicLossScale(interval=INTERVAL)),
    _scaled("fp16, dynamic from 2²⁴", FP16, DynamicLossScale(2.0**24, interval=INTERVAL)),
    _scaled("fp16, dynamic from 1", FP16, DynamicLossScale(1.0, interval=INTERVAL)),
)
TOGETHER = (
    Variant(
        *("accumulate 4, clip norm 1, 25 %", "together", {"accumulate": 4, "clip": ClipNorm(1.0)}), budget_share=0.25
    ),
    _scaled(
        *("fp16, dynamic, clip norm 1", FP16, DynamicLossScale(interval=INTERVAL)),
        clip=ClipNorm(1.0),
        group="together",
    ),
)
#: Rates that grow with the batch are for SGD, and LARS has no meaning beside AdamW, which scales rates by itself.
LARGE_BATCH = (
    Variant("batch × 4", "batch", batch=4),
    Variant("SGD, batch × 4", "batch", batch=4, optimizer="sgd"),
    Variant("SGD, batch × 4, rate × 4, no warm-up", "batch", batch=4, rate=4.0, warm_up=False, optimizer="sgd"),
    Variant("SGD, batch × 4, rate × 4, warm-up", "batch", batch=4, rate=4.0, optimizer="sgd"),
    Variant("LARS, batch × 4, warm-up", "batch", batch=4, optimizer="lars"),
)
#: SGD where the example has AdamW: momentum is what DGC compresses, and clipping acts on the size of an update.
BY_SGD = (
    Variant("SGD", "SGD", optimizer="sgd"),
    Variant("SGD, rate × 3", "SGD", optimizer="sgd", rate=3.0),
    Variant("SGD, rate × 3, clip norm 0.5", "SGD", {"clip": ClipNorm(0.5)}, optimizer="sgd", rate=3.0),
    Variant("SGD, rate × 3, clip value 0.01", "SGD", {"clip": ClipValue(0.01)}, optimizer="sgd", rate=3.0),
)
SENT = Variant("two ranks", "ranks", ranks=2)


def _sent(name: str, method: Any, optimizer: str = "own", **more: Any) -> Variant:
    return Variant(name, "ranks", {"compress": method, **more}, ranks=2, optimizer=optimizer)


#: DGC has SGD's momentum in itself.
RANKS = (
    SENT,
    _sent("HalfCast fp16", graphopt.HalfCast(FP16)),
    _sent("HalfCast bf16", graphopt.HalfCast(BF16)),
    _sent("EightBit", graphopt.EightBit()),
    _sent("QSGD 4 bits", graphopt.QSGD(4)),
    _sent("TopK 5 %", graphopt.TopK(0.05)),
    _sent("Threshold 0.01", graphopt.Threshold(0.01, capacity=0.05)),
    _sent("PowerSGD 2", graphopt.PowerSGD(2)),
    _sent("DGC 5 %", graphopt.DGC(0.05), "sgd without momentum"),
    _sent("DGC 5 %, warm-up", graphopt.DGC(0.05, warmup_steps=40), "sgd without momentum"),
)


def variants_of(model: str) -> tuple[Variant, ...]:
    """What is tried on a model: everything, but for fp16 on `nn.LSTM`, which PyTorch does not run on a CPU."""
    every = (*ALONE, *SCALES, *TOGETHER, *LARGE_BATCH, *BY_SGD, *RANKS)
    return tuple(way for way in every if model != "lstm" or way.options.get("autocast") != FP16)

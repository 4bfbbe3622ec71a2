"""An LSTM, or a transformer over patches, forecasts a year of monthly series (statsmodels': the sea off Peru, CO₂).

python examples/study_series.py --mem-budget 4.5MB
python examples/study_series.py --model patches --mem-budget 900KB
graphopt plan examples/study_series.py:build --mem-budget 4.5MB

`--mem-budget none` is the same loop without graphopt: it prints the same losses, to the bit.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import torch
from statsmodels.datasets import co2, elnino
from torch import Tensor, nn
from torch.nn import functional as F

import graphopt

BATCH, STEPS, RATE, WARM_UP, WIDTH = 32, 100, 1e-2, 10, 32
PAST, YEAR, PATCH = 48, 12, 6
#: The mean absolute error on the last fifth of each series, over that of what was a year ago (seasonal naive).
GOALS = {"lstm": 0.9, "patches": 0.7}
Batch = tuple[Tensor, Tensor]


class LSTM(nn.Module):
    """Reads four years month by month, and says how the next year's differ from the last year's."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.LSTM(1, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, YEAR)

    def forward(self, past: Tensor) -> Tensor:
        hidden, _ = self.layers(past[..., None])
        return past[:, -YEAR:] + self.head(hidden[:, -1])


class Patches(nn.Module):
    """As PatchTST (Nie et al., 2023): a transformer whose words are half years."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Linear(PATCH, WIDTH)
        self.place = nn.Parameter(0.02 * torch.randn(PAST // PATCH, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.1, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(PAST // PATCH * WIDTH, YEAR)

    def forward(self, past: Tensor) -> Tensor:
        hidden = self.blocks(self.patch(past.unflatten(1, (-1, PATCH))) + self.place)
        return past[:, -YEAR:] + self.head(hidden.flatten(1))


MODELS = {"lstm": LSTM, "patches": Patches}


@cache
def data() -> tuple[Batch, Batch]:
    """Pasts (PAST,) and the years (YEAR,) behind them: to train on, and held out.

    Each is less the mean of its last year, in units of the series' own seasonal naive error in what is trained on.
    """
    sea = torch.tensor(elnino.load_pandas().data.iloc[:, 1:].to_numpy().flatten())
    air = torch.tensor(co2.load_pandas().data["co2"].resample("MS").mean().interpolate().to_numpy())
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])
    for series in (sea, air):
        cut = len(series) * 4 // 5
        unit = (series[YEAR:cut] - series[: cut - YEAR]).abs().mean()
        for part, months in zip(parts, (series[:cut], series[cut - PAST :]), strict=True):
            windows = months.unfold(0, PAST + YEAR, 1)
            part.append((windows - windows[:, PAST - YEAR : PAST].mean(1, keepdim=True)) / unit)
    trained, held_out = (torch.cat(part).float().split((PAST, YEAR), dim=1) for part in parts)
    return trained, held_out


def batches(rows: int = BATCH) -> Iterator[Batch]:
    pasts, years = data()[0]
    while True:
        chosen = torch.randint(len(pasts), (rows,))
        yield pasts[chosen], years[chosen]


@torch.no_grad()
def quality(model: nn.Module) -> float:
    """What GOALS counts."""
    pasts, years = data()[1]
    error = F.l1_loss(model.eval()(pasts), years)
    model.train()
    return float(error / F.l1_loss(pasts[:, -YEAR:], years))


def rate(step: int, steps: int) -> float:
    """The share of the peak rate: up to it, then down to nothing."""
    return min((step + 1) / WARM_UP, (steps - step) / (steps - WARM_UP))


def optimizer_of(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=RATE)


def build(name: str = "lstm", seed: int = 0) -> tuple[nn.Module, Batch, Callable[[Tensor, Tensor], Tensor]]:
    torch.manual_seed(seed)
    return MODELS[name](), next(batches()), F.smooth_l1_loss


def main(argv: Sequence[str] | None = None) -> list[float]:
    parser = argparse.ArgumentParser(description="Monthly series, forecast a year ahead.")
    parser.add_argument("--model", choices=tuple(MODELS), default="lstm")
    parser.add_argument("--mem-budget", default="4.5MB")
    args = parser.parse_args(argv)

    model, (pasts, _), loss_fn = build(args.model)
    optimizer = optimizer_of(model.parameters())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, STEPS))
    if args.mem_budget != "none":
        model = graphopt.optimize(model, args.mem_budget, example_inputs=pasts, optimizer=optimizer)
        print(model.graphopt.report)

    losses = []
    for step, (pasts, years) in zip(range(STEPS), batches(), strict=False):
        loss = loss_fn(model(pasts), years)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        scheduler.step()
        losses.append(loss.item())
        if step % 10 == 0:
            print(f"step {step:3d}  loss {losses[-1]:.3f}")
    found, goal = quality(model), GOALS[args.model]
    print(f"{found:.3f} of seasonal naive's error; the goal, {goal}, is {'not ' * (found > goal)}reached")
    return losses


if __name__ == "__main__":
    main()

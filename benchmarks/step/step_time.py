"""What a step of graphopt costs in real time, beside eager and `torch.compile(backend="aot_eager")`.

python -m benchmarks.step.step_time [model ...] [--rounds 9] [--threads 1] [--json out.json]

Every figure is a ratio of two steps (gradients dropped, forward, backward) run in alternation in
one process, the median of the rounds; the quartiles say how far to trust it. With nothing
recomputed the ratio over aot_eager is graphopt's own cost. At a budget the ratio over eager stands
beside the one that the plan predicts: their quotient is what the plan did not foresee. A share of
eager's peak below the minimum stands for the minimum.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import graphopt
from benchmarks.common import UNLIMITED_BYTES, LossModule, build_case, write_json
from graphopt.device.measure import ratio

MODELS = ("gpt2_anchor", "bert_anchor", "resnet50_anchor")
SHARES = (0.5, 0.3)


@dataclass(frozen=True)
class Row:
    """Time of `step` over time of `against`, and what the plan predicts for it."""

    model: str
    step: str
    against: str
    ratio: float
    lower_quartile: float
    upper_quartile: float
    seconds: float
    against_seconds: float
    predicted: float

    @property
    def unforeseen(self) -> float:
        """Measured over predicted ratio: 1 where the plan knew all."""
        return self.ratio / self.predicted


def training_step(module: nn.Module, name: str) -> Callable[[], None]:
    """A step of `module` on the inputs of the case `name`."""
    case = build_case(name)

    def run() -> None:
        module.zero_grad(set_to_none=True)
        module(*case.args, **case.kwargs).backward()

    return run


def planned(name: str, budget_bytes: int) -> tuple[nn.Module, graphopt.Plan]:
    """The model inside a budget, and its plan; raises BudgetError below its minimum."""
    case = build_case(name)
    module = graphopt.optimize(LossModule(case), budget_bytes, example_inputs=case.args, example_kwargs=case.kwargs)
    plan: graphopt.Plan = module.graphopt.plan  # type: ignore[union-attr, assignment]
    return module, plan


def time_model(name: str, rounds: int) -> Iterator[Row]:
    """All comparisons of one model."""
    torch._dynamo.reset()
    eager = training_step(LossModule(build_case(name)), name)
    aot_module = LossModule(build_case(name))
    aot_module.compile(backend="aot_eager", dynamic=False)
    aot_eager = training_step(aot_module, name)
    module, plan = planned(name, UNLIMITED_BYTES)
    whole = training_step(module, name)
    yield compare(name, ("nothing recomputed", whole), ("aot_eager", aot_eager), rounds, 1.0)
    yield compare(name, ("nothing recomputed", whole), ("eager", eager), rounds, 1.0)
    for share in SHARES:
        setting = f"{share:.0%} of eager's peak"
        try:
            module, small = planned(name, int(share * plan.eager_peak_bytes))
        except graphopt.BudgetError as error:
            setting = f"minimum, {error.minimum_bytes / plan.eager_peak_bytes:.0%} of eager's peak"
            module, small = planned(name, error.minimum_bytes)
        step = training_step(module, name)
        yield compare(name, (setting, step), ("eager", eager), rounds, 1 + small.overhead)
        if setting.startswith("minimum"):
            return


def compare(
    model: str,
    one: tuple[str, Callable[[], None]],
    other: tuple[str, Callable[[], None]],
    rounds: int,
    predicted: float,
) -> Row:
    """Time two named steps against each other."""
    found = ratio(one[1], other[1], rounds)
    return Row(
        model=model,
        step=one[0],
        against=other[0],
        ratio=found.median,
        lower_quartile=found.lower_quartile,
        upper_quartile=found.upper_quartile,
        seconds=found.a_seconds,
        against_seconds=found.b_seconds,
        predicted=predicted,
    )


def show(rows: list[Row]) -> Table:
    columns = ("model", "graphopt", "against", "seconds", "against s", "ratio", "quartiles", "predicted")
    table = Table(*columns, "measured/predicted", title="time of a training step")
    for row in rows:
        figures = (f"{row.seconds:.3f}", f"{row.against_seconds:.3f}", f"{row.ratio:.3f}")
        spread = f"{row.lower_quartile:.3f}–{row.upper_quartile:.3f}"
        table.add_row(
            row.model, row.step, row.against, *figures, spread, f"{row.predicted:.3f}", f"{row.unforeseen:.3f}"
        )
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS, help="names from tests/support/zoo")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="PATH")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows: list[Row] = []
    for model in args.models:
        for row in time_model(model, args.rounds):
            rows.append(row)
            write_json(args.json, [{**asdict(each), "unforeseen": each.unforeseen} for each in rows])
    Console(width=None if sys.stdout.isatty() else 150).print(show(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())

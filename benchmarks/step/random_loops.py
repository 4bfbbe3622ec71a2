"""Random modules in the loops that people write: gradients against eager's bits, and no excess without a word.

python -m benchmarks.step.random_loops [--count 300] [--first 0] [--json out.json]

Each module is trained for some steps in one kind of loop, inside a budget between the least that its plan needs and
what eager takes, beside a copy in eager. After each step gradients, parameters, buffers and the generator's state are
compared bit by bit. Each step is measured by the profiler's allocator events, which know nothing of graphopt's own
watch: a step above the budget must have been told of in that step. What ends in an error that says why is "refused".
"""

from __future__ import annotations

import argparse
import copy
import logging
import random
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

import graphopt
from benchmarks.common import about, write_json
from benchmarks.step.random_modules import Tied, random_module
from graphopt.base.errors import GraphoptError
from graphopt.device.measure import peak_bytes

Batch = Callable[[], torch.Tensor]
STEPS = 5


@dataclass(frozen=True)
class Case:
    """One module in one loop: `outcome` is "ok", "refused", "named", "silent excess", "false alarm", "differs"."""

    seed: int
    loop: str
    budget_bytes: int
    outcome: str
    told: int = 0
    most_bytes: int = 0
    error: str = ""


def plain(model: nn.Module, batch: Batch, _: int) -> None:
    model(batch()).square().mean().backward()


def accumulate(model: nn.Module, batch: Batch, step: int) -> None:
    if step % 3 == 0:
        model.zero_grad()
    plain(model, batch, step)


def two_forwards(model: nn.Module, batch: Batch, _: int) -> None:
    (model(batch()) - model(batch())).square().mean().backward()


def zeros_stay(model: nn.Module, batch: Batch, step: int) -> None:
    model.zero_grad(set_to_none=False)
    plain(model, batch, step)


def autocast(model: nn.Module, batch: Batch, _: int) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(batch()).float().square().mean()
    loss.backward()


def hooks(model: nn.Module, batch: Batch, step: int) -> None:
    first = model[0]  # type: ignore[index]
    handle = first.register_forward_hook(lambda _module, _given, out: out * 1.5) if step % 2 else None
    plain(model, batch, step)
    if handle is not None:
        handle.remove()


def loss_with_weights(model: nn.Module, batch: Batch, _: int) -> None:
    penalty = sum(parameter.square().sum() for parameter in model.parameters() if parameter.requires_grad)
    (model(batch()).square().mean() + 1e-3 * penalty).backward()


def two_shapes(model: nn.Module, batch: Batch, step: int) -> None:
    model(batch()[: (None, -8)[step % 2]]).square().mean().backward()


#: Loops, and whether gradients go before each step.
LOOPS: dict[str, tuple[Callable[[nn.Module, Batch, int], None], bool]] = {
    "plain": (plain, True),
    "accumulate": (accumulate, False),
    "two forwards": (two_forwards, True),
    "set_to_none=False": (zeros_stay, False),
    "autocast": (autocast, True),
    "hooks": (hooks, True),
    "evaluated": (plain, True),
    "loss with weights": (loss_with_weights, True),
    "two shapes": (two_shapes, True),
}


class _Told(logging.Handler):
    """Counts what graphopt says of steps that were over."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += "a training step took" in record.getMessage()


def evaluate(model: nn.Module, eager: nn.Module, x: torch.Tensor) -> None:
    """Both in eval mode, without gradients, as between two epochs."""
    for each in (model, eager):
        each.eval()
        with torch.no_grad():
            each(x)
        each.train()


def tensors_of(model: nn.Module) -> Iterable[torch.Tensor | None]:
    """Gradients, parameters and buffers."""
    return [*(p.grad for p in model.parameters()), *model.parameters(), *model.buffers()]


def same(one: nn.Module, other: nn.Module) -> bool:
    """Whether two models are alike to the bit."""
    pairs = zip(tensors_of(one), tensors_of(other), strict=True)
    return all((a is None and b is None) or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)


def _estimate(model: nn.Module, x: torch.Tensor) -> graphopt.Estimate:
    """What a step takes with the loss inside; the second input stands for a target that is not read."""
    return graphopt.estimate(copy.deepcopy(model), (x, torch.zeros(1)), lambda y, _: y.square().mean())


def uses_a_weight_twice(model: nn.Module) -> bool:
    """Then some sums of its gradients are made in another order or dtype than eager's, as docs/numerics.md names."""
    layers = list(model.children())
    return any(isinstance(layer, Tied) for layer in layers) or len(set(layers)) < len(model)  # type: ignore[arg-type]


def run_case(seed: int) -> Case:
    """One module in one loop, both chosen by the seed."""
    choose = random.Random(seed * 7919 + 1)
    name = choose.choice(list(LOOPS))
    loop, drops = LOOPS[name]
    model, rows, width = random_module(seed)
    eager = copy.deepcopy(model)
    torch._dynamo.reset()
    try:
        estimate = _estimate(model, torch.randn(rows, width))
    except GraphoptError as error:
        return Case(seed, name, 0, "refused", error=str(error).splitlines()[0])
    least, most = estimate.minimum_bytes, estimate.eager_peak_bytes
    gradient_bytes = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    room = least + choose.choice((0.1, 0.5, 0.9)) * (most - least)
    # what a loop has to have beside a lone step: a second set of gradients or inputs, more forwards, a loss outside
    room += {"plain": 0.1, "two forwards": 1.0}.get(name, 0.3) * least + gradient_bytes * (name == "loss with weights")
    budget_bytes = int(room)
    told, worst = _Told(), 0
    logging.getLogger("graphopt").addHandler(told)
    try:
        graphopt.optimize(model, budget_bytes)
        for step in range(STEPS):
            outcome, measured = _one_step(loop, drops, model, eager, (rows, width), step, budget_bytes, told)
            worst = max(worst, measured)
            if name == "evaluated":
                evaluate(model, eager, torch.randn(rows, width))
            if outcome == "differs" and name in ("autocast", "two forwards") and uses_a_weight_twice(model):
                return Case(seed, name, budget_bytes, "named", told.count, worst)
            if outcome != "ok":
                return Case(seed, name, budget_bytes, outcome, told.count, worst)
    except GraphoptError as error:
        return Case(seed, name, budget_bytes, "refused", told.count, worst, str(error).splitlines()[0])
    finally:
        logging.getLogger("graphopt").removeHandler(told)
    return Case(seed, name, budget_bytes, "ok", told.count, worst)


def _one_step(
    loop: Callable[[nn.Module, Batch, int], None],
    drops: bool,
    model: nn.Module,
    eager: nn.Module,
    shape: tuple[int, int],
    step: int,
    budget_bytes: int,
    told: _Told,
) -> tuple[str, int]:
    batches = {}
    for each in (eager, model):
        if drops:
            each.zero_grad()
        torch.manual_seed(step)
        batches[each] = [torch.randn(*shape), torch.randn(*shape)]
    before, given, plan = told.count, batches[model], model.graphopt.session.in_force
    there = [t for t in (*tensors_of(model), *given) if t is not None]
    torch.manual_seed(step + 1000)
    loop(eager, iter(batches[eager]).__next__, step)
    state = torch.get_rng_state()
    torch.manual_seed(step + 1000)
    measured = peak_bytes(lambda: loop(model, iter(given).__next__, step), there, "cpu")
    if not same(model, eager) or not torch.equal(state, torch.get_rng_state()):
        return "differs", measured
    if model.graphopt.session.in_force is not plan:
        return "ok", 0  # the profiler measured planning too
    # the profiler has the second batch from the start, and does not see gradients go that were there before
    known = budget_bytes + given[1].nbytes
    if measured > known and told.count == before and drops:
        return "silent excess", measured
    return ("false alarm" if told.count > before and measured <= budget_bytes - given[1].nbytes else "ok"), measured


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    seeds = range(options.first, options.first + options.count)
    cases = [run_case(seed) for seed in track(seeds, "modules", console=Console(stderr=True))]
    table = Table("loop", "ok", "refused", "named", "told", "silent excess", "false alarm", "differs")
    for name in LOOPS:
        found = [case for case in cases if case.loop == name]
        count = Counter(case.outcome for case in found)
        columns = ("ok", "refused", "named", "told", "silent excess", "false alarm", "differs")
        count["told"] = sum(case.told > 0 for case in found)
        table.add_row(name, *(str(count[column]) for column in columns))
    Console().print(table)
    for case in cases:
        if case.outcome not in ("ok", "refused", "named"):
            print(case)
    if options.json:
        write_json(options.json, {**about("cpu"), "cases": [asdict(case) for case in cases]})
    return int(any(case.outcome not in ("ok", "refused", "named") for case in cases))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

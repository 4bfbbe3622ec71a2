"""What watching costs: a step with the watch over it against the same step without, and the counter of allocations.

python -m benchmarks.step.watching [--rounds 21] [--inside] [--json out.json]

All in one process and over one model: two copies of a model differ by more than the watch costs, as their memory lies
elsewhere. The watch is taken from the model, and the counter from PyTorch's allocator, in alternating rounds of a few
steps: "steady" steps are measured as a whole, "by place" is what the first steps of a plan cost, and all that are not
like those before them. How much two equal halves of the rounds without the watch differ is shown too. Times are the
process's own (one thread); a round counts as its median step, and a ratio is with over without.

With `--inside` the watch's functions are timed where they are called in a step, less what timing takes: where other
work runs beside it, the ratios of whole steps tell nothing.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.optim import optimizer

import graphopt
from benchmarks.common import about, write_json
from graphopt.device.cpu_counter import cpu_counter
from graphopt.run.calls import loop as run_loop
from graphopt.run.watch.steady import Steady

_STEPS_OF_ROUND = 12
_CPU = 0

#: (blocks, width, rows): few large operators, many small ones, many parameters.
SHAPES = {"large": (4, 512, 256), "small operators": (12, 64, 64), "many parameters": (200, 32, 64)}


@dataclass(frozen=True)
class Cost:
    """Medians over rounds, and quartiles of the ratio; seconds of one step."""

    model: str
    what: str
    without_seconds: float
    ratio: float
    lower_quartile: float
    upper_quartile: float


def make_step(shape: tuple[int, int, int], optimized: bool = True) -> tuple[Callable[[], None], nn.Module]:
    """A training step of a plain stack of layers, and the model."""
    count, width, rows = shape
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(width, width), nn.GELU()) for _ in range(count)]
    model, x = nn.Sequential(*layers), torch.randn(rows, width)
    sgd = torch.optim.SGD(model.parameters(), lr=0.01)
    if optimized:
        graphopt.optimize(model, "1GiB", cost_model="roofline")

    def step() -> None:
        sgd.zero_grad()
        model(x).square().mean().backward()
        sgd.step()

    for _ in range(24):
        step()
    return step, model


@contextmanager
def unwatched(model: nn.Module) -> Iterator[None]:
    """No watch over the model's steps, and nothing that tells it of updates."""
    loop = model.graphopt.session.loop  # type: ignore[union-attr]
    hooks = [optimizer._global_optimizer_pre_hooks, optimizer._global_optimizer_post_hooks]
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(loop, "watch", None))
        stack.enter_context(mock.patch.object(run_loop, "watch_of", lambda *_: None))
        for each in hooks:
            stack.enter_context(mock.patch.dict(each, clear=True))
        yield


@contextmanager
def by_place() -> Iterator[None]:
    """Every step is measured as the first ones of a plan are."""
    with mock.patch.object(Steady, "begins", lambda *_: None):
        yield


@contextmanager
def uncounted() -> Iterator[None]:
    """PyTorch's own allocator, without the counter in front; a block knows by which of them it is freed."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    of_type, own = library._ZN3c1012GetAllocatorERKNS_10DeviceTypeE, library._ZN3c1022GetDefaultCPUAllocatorEv
    set_to = library._ZN3c1012SetAllocatorENS_10DeviceTypeEPNS_9AllocatorEh
    of_type.restype = own.restype = ctypes.c_void_p
    of_type.argtypes, set_to.argtypes = [ctypes.c_void_p], [ctypes.c_int8, ctypes.c_void_p, ctypes.c_uint8]
    counting = of_type(ctypes.byref(ctypes.c_int8(_CPU)))
    set_to(_CPU, own(), 0)
    try:
        yield
    finally:
        set_to(_CPU, counting, 0)


def seconds_of(step: Callable[[], None]) -> float:
    """Processor seconds of one step: the median of a few, behind one that is not looked at."""
    step()
    times = []
    for _ in range(_STEPS_OF_ROUND):
        start = time.process_time_ns()
        step()
        times.append(time.process_time_ns() - start)
    return statistics.median(times) / 1e9


def ratio_of(name: str, what: str, without: list[float], with_: list[float]) -> Cost:
    """The ratios of rounds."""
    ratios = [b / a for a, b in zip(without, with_, strict=True)]
    lower, middle, upper = statistics.quantiles(ratios, n=4, method="inclusive")
    return Cost(name, what, statistics.median(without), middle, lower, upper)


def in_turns(
    step: Callable[[], None], ways: dict[str, Callable[[], AbstractContextManager[None]]], rounds: int
) -> dict[str, list[float]]:
    """Seconds of a step in each of these ways, round by round; who comes first changes."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    order = list(ways)
    for _ in range(rounds):
        order.append(order.pop(0))
        for name in order:
            with ways[name]():
                times[name].append(seconds_of(step))
    return times


def compare_watch(name: str, rounds: int) -> list[Cost]:
    """The watch; and the rounds without it against each other."""
    step, model = make_step(SHAPES[name])
    ways = {
        "steady": nullcontext,
        "by place": by_place,
        "without": lambda: unwatched(model),
        "again": lambda: unwatched(model),
    }
    times = in_turns(step, ways, rounds)
    without = times["without"]
    return [
        ratio_of(name, "watch, steady", without, times["steady"]),
        ratio_of(name, "watch, by place", without, times["by place"]),
        ratio_of(name, "nothing", without, times["again"]),
    ]


@dataclass(frozen=True)
class Inside:
    """What one function of the watch takes in a step: a tenth of its calls took less, and half of them."""

    function: str
    tenth_seconds: float
    median_seconds: float


def inside(name: str, steps: int) -> list[Inside]:
    """Steady steps with each function of the watch timed, and the hooks of optimizers; "nothing" is taken off."""
    step, model = make_step(SHAPES[name])
    watch = model.graphopt.session.loop.watch  # type: ignore[union-attr]
    taken: dict[str, list[int]] = {}
    now = time.perf_counter_ns

    def timed(what: str, call: Callable[..., object]) -> Callable[..., object]:
        times = taken.setdefault(what, [])

        def run(*args: object) -> object:
            start = now()
            result = call(*args)
            times.append(now() - start)
            return result

        return run

    def around(what: str, call: Callable[..., object]) -> Callable[..., object]:
        """Of what is around a graph, without the graph."""
        times = taken.setdefault(what, [])

        def run(graph: Callable[[object], object], args: object) -> object:
            of_graph = 0

            def timed_graph(args: object) -> object:
                nonlocal of_graph
                start = now()
                result = graph(args)
                of_graph = now() - start
                return result

            start = now()
            result = call(timed_graph, args)
            times.append(now() - start - of_graph)
            return result

        return run

    begins, nothing = watch.begins, timed("nothing", lambda *_: None)
    watch.begins = timed("begins", lambda *args: begins(*args[:4], is_behind=args[4]))
    known = watch.begins

    def begin(*args: object, is_behind: bool) -> None:
        known(*args, is_behind)
        nothing()

    watch.begins, watch.forward_ends = begin, timed("forward_ends", watch.forward_ends)
    for each in ("around_forward", "around_backward"):
        setattr(watch, each, around(each, getattr(watch, each)))
    hooks = optimizer._global_optimizer_pre_hooks, optimizer._global_optimizer_post_hooks
    with ExitStack() as stack:
        for found, what in zip(hooks, ("before the update", "behind the update"), strict=True):
            stack.enter_context(mock.patch.dict(found, {key: timed(what, hook) for key, hook in found.items()}))
        for _ in range(steps):
            step()
    tenths = {what: (statistics.quantiles(times, n=10)[0], statistics.median(times)) for what, times in taken.items()}
    tenth, median = tenths.pop("nothing")
    return [Inside(what, (a - tenth) / 1e9, (b - median) / 1e9) for what, (a, b) in tenths.items()]


def compare_counter(name: str, rounds: int) -> list[Cost]:
    """The counter of allocations, over a step in eager."""
    assert cpu_counter() is not None
    step, _ = make_step(SHAPES[name], optimized=False)
    times = in_turns(step, {"with": nullcontext, "without": uncounted}, rounds)
    return [ratio_of(name, "counter", times["without"], times["with"])]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--inside", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.inside:
        found = inside("small operators", 1500)
        for each in found:
            print(f"{each.function:20} {each.tenth_seconds * 1e6:6.1f} µs {each.median_seconds * 1e6:6.1f} µs")
        print(f"{'together':20} {sum(each.tenth_seconds for each in found) * 1e6:6.1f} µs")
        write_json(options.json, {**about("cpu"), "inside": [asdict(each) for each in found]})
        return 0
    costs = [cost for name in SHAPES for of in (compare_watch, compare_counter) for cost in of(name, options.rounds)]
    table = Table("model", "what", "a step without", "with / without", "quartiles")
    for cost in costs:
        quartiles = f"{cost.lower_quartile:.4f} to {cost.upper_quartile:.4f}"
        table.add_row(cost.model, cost.what, f"{cost.without_seconds * 1e3:.2f} ms", f"{cost.ratio:.4f}", quartiles)
    Console().print(table)
    write_json(options.json, {**about("cpu"), "costs": [asdict(cost) for cost in costs]})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

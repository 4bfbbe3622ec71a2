"""`graphopt sweep --over`: what fits at which sizes of the inputs, and at what price."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import asdict
from itertools import product
from typing import TYPE_CHECKING, Any

from graphopt.base.errors import UsageError
from graphopt.base.units import parse_bytes

if TYPE_CHECKING:
    from torch import nn

_PATTERN = re.compile(r"\s*([A-Za-z_]\w*)(?:@(\d+))?\s*=\s*([\d_]+)\s*:\s*([\d_]+)\s*")

#: Sizes of one name, evenly by their ratios.
_STEPS = 8


def parse_over(text: str) -> tuple[dict[str, int], dict[str, tuple[int, int]]]:
    """Read `batch=1:64,length=128:4096`: the dimension of each name, and its range; raises UsageError.

    The first name is dimension 0, the second dimension 1; `side@2=32:512` says another one.
    """
    dynamic: dict[str, int] = {}
    ranges: dict[str, tuple[int, int]] = {}
    for number, part in enumerate(text.split(",")):
        match = _PATTERN.fullmatch(part)
        if match is None:
            raise UsageError(f"--over {text!r}: {part!r} is no NAME=FROM:TO, as in batch=1:64,length=128:4096")
        name, low, high = match[1], int(match[3]), int(match[4])
        if name in ranges or not 1 <= low <= high:
            raise UsageError(f"--over {text!r}: {part!r} stands twice, or is no range of sizes from 1 on")
        dynamic[name], ranges[name] = int(match[2] or number), (low, high)
    if len(ranges) > 2:
        raise UsageError(f"--over {text!r}: a table has two sizes at the most")
    return dynamic, ranges


def sizes_between(low: int, high: int) -> list[int]:
    """At most `_STEPS` sizes from low to high, both among them: doubled where that does, else by even ratios."""
    doubled = [low]
    while 2 * doubled[-1] < high:
        doubled.append(2 * doubled[-1])
    if len(doubled) < _STEPS:
        return sorted({*doubled, high})
    return sorted({round(low * (high / low) ** (step / (_STEPS - 1))) for step in range(_STEPS)})


def sweep_over(options: argparse.Namespace, costs: dict[str, Any]) -> tuple[Callable[[bool], str], dict[str, Any]]:
    """The table as text and as data."""
    dynamic, ranges = parse_over(options.over)
    budget_bytes = None if options.mem_budget is None else parse_bytes(options.mem_budget, device_total_bytes=2**40)
    from graphopt.api.estimate import estimate
    from graphopt.cli.build_function import load_target
    from graphopt.report.grid import SizeGrid, grid_text

    target = load_target(options.target, "meta" if options.meta else options.device, options.dim, sizes_change=True)
    found = estimate(
        target.model, target.example_inputs, target.loss_fn, optimizer=target.optimizer, dynamic=dynamic, **costs
    )
    each = [sizes_between(low, high) for low, high in ranges.values()]
    budget_bytes = None if options.mem_budget is None else found.bytes_of(options.mem_budget)
    points = found.grid([dict(zip(ranges, sizes, strict=True)) for sizes in product(*each)], budget_bytes)
    grid = SizeGrid(found.model, tuple(ranges), tuple(points), budget_bytes, _note(options, target.model))
    formula = found.formula_in(ranges)
    data: dict[str, Any] = {
        "schema": "graphopt.sizes/1",
        "budget_bytes": budget_bytes,
        "points": [asdict(point) | {"sizes": dict(zip(ranges, point.sizes, strict=True))} for point in points],
        "formula": formula.as_text(),
    }
    return lambda color: f"{grid_text(grid, color=color)}\n\n{formula}", data


def parse_dynamic(text: str) -> dict[str, int]:
    """Read `batch=0,length=1`: the dimension of each name; raises UsageError."""
    parts = [part.partition("=") for part in text.split(",")]
    if not all(dimension.strip().isdigit() for _, _, dimension in parts):
        raise UsageError(f"--dynamic {text!r}: write NAME=DIMENSION,..., as in batch=0,length=1")
    return {name.strip(): int(dimension) for name, _, dimension in parts}


def on_meta(model: nn.Module) -> str:
    """What there is to say of a model without weights, with the dtypes that its bytes are of."""
    dtypes = dict.fromkeys(str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters())
    return (
        f"on the meta device: nothing was allocated or run. Parameters are {' and '.join(dtypes)}. Times are the "
        "roofline's, with an A100's data sheet; scratch memory of operators is not counted"
    )


def _note(options: argparse.Namespace, model: nn.Module) -> str:
    if options.meta:
        return on_meta(model)
    return "times are the roofline's; scratch memory of operators is not counted" if is_estimated(options) else ""


def is_estimated(options: argparse.Namespace) -> bool:
    """Whether no operator is run to find out what it costs."""
    return bool(options.cost_model == "roofline")

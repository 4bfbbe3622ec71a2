"""Whether a file computes in another batch what it computes in its own, row by row.

Sizes inside of a file may be tied to its batch: a reshape that merges it with another dimension, a slice, a constant.
What is made for another batch may then have the right shapes and mix its rows. So it is run once, and compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from graphopt.base.errors import OnnxError
from graphopt.formats.onnx.inputs import OnnxInput, batch_in_file, batch_places, example
from graphopt.formats.onnx.sizes import Build

#: What a difference may be of the largest value: another batch takes other kernels, and mixed rows differ by far more.
_MOST_DIFFERENCE = 1e-3
#: Larger batches are judged by one of three times the file's own.
_MOST_TIMES, _TIMES = 4, 3


@dataclass(frozen=True)
class BatchChange:
    """Inputs, by number, whose first size changes from the file's `own` to another; or may, where none is asked for."""

    places: tuple[int, ...]
    own: int
    to: int
    is_asked_for: bool


def change_of(
    own: Sequence[OnnxInput], inputs: Sequence[OnnxInput], dims: Mapping[str, int], *, sizes_change: bool
) -> BatchChange | None:
    """How the batch changes from that in the file; None where it does not, or has a name there.

    Raises OnnxError where first sizes change in several ways: then there is nothing to compare with.
    """
    changed = [place for place, each in enumerate(inputs) if each.sizes[:1] != own[place].sizes[:1]]
    ways = {(own[place].shape(dims)[0], inputs[place].shape(dims)[0]) for place in changed}
    if len(ways) > 1:
        raise OnnxError("first sizes of inputs change in several ways; change them all from one number to another")
    if ways:
        ((before, after),) = ways
        return BatchChange(tuple(changed), before, after, True)
    in_file = batch_in_file(own)
    if not sizes_change or in_file is None:
        return None
    return BatchChange(batch_places(own), in_file, _TIMES * in_file, False)


def why_rows_differ(
    module: fx.GraphModule, build: Build, inputs: Sequence[OnnxInput], dims: Mapping[str, int], change: BatchChange
) -> str:
    """Why rows of the changed batch are not those of the file's own; "" where they are. `module` is of these inputs."""
    to = change.to if change.to <= _MOST_TIMES * change.own else _TIMES * change.own
    try:
        shapes = [each.shape(dims) for each in inputs]
        alone, many = (_with_batch(module, build, shapes, change, batch) for batch in (change.own, to))
        holes = [node for node in many.graph.nodes if node.op == "placeholder"]
        changed = [replace(each, sizes=(to, *each.sizes[1:])) if i in change.places else each
                   for i, each in enumerate(inputs)]  # fmt: skip
        feeds = [
            example(each, dims, hole, place) for place, (each, hole) in enumerate(zip(changed, holes, strict=True))
        ]
        with torch.no_grad():
            together = _results(many, feeds)
            apart = [
                _results(alone, [_rows(x, start, change.own) if i in change.places else x for i, x in enumerate(feeds)])
                for start in range(0, to, change.own)
            ]
    except Exception as error:  # of whatever the file has it run
        reason = " ".join(str(error).split())[:300]
        return f"it cannot be run in a batch of {to}, where the file has {change.own}: {reason}"
    parts = zip(*apart, strict=True)
    if all(_is_made_of(got, mine, change.own) for got, mine in zip(together, parts, strict=True)):
        return ""
    return (
        f"in a batch of {to} it does not compute, row by row, what it computes in the file's own of {change.own}: "
        "sizes inside of the file are tied to that. Export the model with a named batch (dynamic_axes, dynamic_shapes) "
        "or leave the batch as it is"
    )


def _with_batch(
    module: fx.GraphModule, build: Build, shapes: Sequence[Sequence[int]], change: BatchChange, batch: int
) -> fx.GraphModule:
    """The model in another batch, with the weights of `module`; constants are its own, as the batch may be in them."""
    if shapes[change.places[0]][0] == batch:
        return module.eval()
    made = build([[batch, *shape[1:]] if i in change.places else shape for i, shape in enumerate(shapes)])
    held = {name: value for name, value in module.state_dict().items() if not name.startswith("constant_")}
    made.load_state_dict(held, strict=False, assign=True)
    return made.eval()


def _results(module: nn.Module, feeds: Sequence[Tensor]) -> list[Tensor]:
    found = module(*feeds)
    return list(found) if isinstance(found, (tuple, list)) else [found]


def _rows(x: Tensor, start: int, count: int) -> Tensor:
    """So many rows from `start` on, the last one again where there are no more."""
    return x[[min(start + number, x.shape[0] - 1) for number in range(count)]]


def _is_made_of(got: Tensor, parts: Sequence[Tensor], own: int) -> bool:
    """Whether these are the rows of the parts, or the mean or the sum of parts that have no rows."""
    if parts[0].dim() and parts[0].shape[0] == own:
        rows = torch.cat(list(parts))
        return got.dim() > 0 and len(rows) - own < got.shape[0] <= len(rows) and _alike(got, rows[: got.shape[0]])
    stacked = torch.stack(list(parts))
    if not stacked.dtype.is_floating_point:
        return _alike(got, parts[0])
    return any(_alike(got, each) for each in (stacked.mean(0), stacked.sum(0)))


def _alike(got: Tensor, wanted: Tensor) -> bool:
    if got.shape != wanted.shape:
        return False
    if not got.dtype.is_floating_point and not got.dtype.is_complex:
        return torch.equal(got, wanted)
    largest = float(wanted.abs().nan_to_num(0.0, 0.0, 0.0).max()) if wanted.numel() else 0.0
    return torch.allclose(got, wanted, rtol=0.0, atol=_MOST_DIFFERENCE * largest + 1e-30, equal_nan=True)

"""A model's inputs: their sizes, with those that have only a name in the file, and examples of them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from onnx import ModelProto
from torch import Tensor, fx

from graphopt.base.errors import OnnxError
from graphopt.formats.onnx.ops.node import torch_dtype
from graphopt.formats.onnx.weights import Uses

#: Examples are really made; larger ones are a mistake in `--dim`, or a file that wants to fill the memory.
MOST_BYTES = 2**33
#: A dimension of an input, for those whose size is a number in the file, or nothing: `x@0`.
_PLACE = re.compile(r"(.+)@(\d+)")


@dataclass(frozen=True)
class OnnxInput:
    """An input: its name in the file, its sizes where each is a number or a name, and its dtype."""

    name: str
    sizes: tuple[int | str, ...]
    dtype: torch.dtype

    def shape(self, dims: Mapping[str, int]) -> list[int]:
        """The sizes as numbers."""
        return [dims[size] if isinstance(size, str) else size for size in self.sizes]


def inputs_of(model: ModelProto) -> list[OnnxInput]:
    """The inputs that are no initialisers; raises OnnxError for those that are no tensors."""
    initial = {tensor.name for tensor in model.graph.initializer}
    found = []
    for each in model.graph.input:
        if each.name in initial:
            continue
        kind = each.type.tensor_type
        if not each.type.HasField("tensor_type"):
            raise OnnxError(f"input {each.name!r} is no tensor, which is not known here")
        try:
            dtype = torch_dtype(kind.elem_type)
        except OnnxError as error:
            raise OnnxError(f"input {each.name!r}: {error}") from None
        if not kind.HasField("shape"):
            raise OnnxError(f"input {each.name!r} says nothing of its shape: export the model with one")
        sizes = tuple(
            dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else dim.dim_param or f"{each.name}@{axis}"
            for axis, dim in enumerate(kind.shape.dim)
        )
        found.append(OnnxInput(each.name, sizes, dtype))
    return found


def is_stripped(each: OnnxInput, uses: Uses) -> bool:
    """Whether an input is a weight that the file lacks: it stands in such a place, and all its sizes are numbers."""
    numbers = all(isinstance(size, int) for size in each.sizes)
    return bool(each.sizes) and numbers and each.dtype.is_floating_point and uses.is_missing(each.name)


def resized(inputs: Sequence[OnnxInput], dims: Mapping[str, int]) -> tuple[list[OnnxInput], dict[str, int]]:
    """The inputs with other numbers where `dims` has a dimension by its place, `x@0`; and what is left of `dims`.

    Raises OnnxError where there is no such dimension, or where it has a name.
    """
    found = {each.name: each for each in inputs}
    left = dict(dims)
    names = names_of_sizes(inputs)
    for key, size in dims.items():
        match = _PLACE.fullmatch(key)
        if match is None or key in names:
            continue
        each, axis = found.get(match[1]), int(match[2])
        if each is None or axis >= len(each.sizes):
            raise OnnxError(f"there is no dimension {key}; {_said(inputs)}")
        if isinstance(each.sizes[axis], str):
            raise OnnxError(f"the size of {key} has a name: --dim {each.sizes[axis]}={size}")
        found[each.name] = replace(each, sizes=(*each.sizes[:axis], size, *each.sizes[axis + 1 :]))
        del left[key]
    return [found[each.name] for each in inputs], left


def batch_in_file(inputs: Sequence[OnnxInput]) -> int | None:
    """The first input's first size, where it is a number in the file: nodes may have it among theirs."""
    first = inputs[0].sizes[0] if inputs and inputs[0].sizes else None
    return first if isinstance(first, int) else None


def batch_places(inputs: Sequence[OnnxInput]) -> tuple[int, ...]:
    """The inputs, by number, whose first size is the first one's."""
    return tuple(place for place, each in enumerate(inputs) if each.sizes[:1] == inputs[0].sizes[:1])


def names_of_sizes(inputs: Sequence[OnnxInput]) -> list[str]:
    """Names of sizes, in the order in which they come."""
    return list(dict.fromkeys(size for each in inputs for size in each.sizes if isinstance(size, str)))


def check_sizes(inputs: Sequence[OnnxInput], dims: Mapping[str, int]) -> None:
    """Raise OnnxError where a named size has no number, or a number no name."""
    names = names_of_sizes(inputs)
    missing = [name for name in names if name not in dims]
    if missing:
        places = {
            name: f"{each.name}, dimension {axis}"
            for each in reversed(inputs)
            for axis, name in reversed(list(enumerate(each.sizes)))
        }
        said = ", ".join(f"{name} ({places[name]})" for name in missing)
        raise OnnxError(f"sizes that have only a name: {said}; give them: {' '.join(f'--dim {n}=8' for n in missing)}")
    unknown = [name for name in dims if name not in names]
    if unknown:
        raise OnnxError(f"there is no size named {', '.join(unknown)}; {_said(inputs)}")
    for each in inputs:
        count = math.prod(each.shape(dims))
        if count * torch.empty((), dtype=each.dtype).element_size() > MOST_BYTES:
            raise OnnxError(f"input {each.name!r} of sizes {each.shape(dims)} is larger than {MOST_BYTES:,} bytes")


def _said(inputs: Sequence[OnnxInput]) -> str:
    """The inputs with their sizes, and how to give them."""
    shapes = ", ".join(f"{each.name}[{', '.join(map(str, each.sizes))}]" for each in inputs)
    return f"there are {shapes or 'no inputs'}: a name as N=8, a number by its place as NAME@0=8"


def example(each: OnnxInput, dims: Mapping[str, int], placeholder: fx.Node, seed: int) -> Tensor:
    """An input as the model might get it: numbers about 0, places inside of the tables that they are read in."""
    shape = each.shape(dims)
    generator = torch.Generator().manual_seed(seed)
    if each.dtype.is_floating_point or each.dtype.is_complex:
        return torch.randn(shape, generator=generator, dtype=torch.float32).to(each.dtype)
    most = _places(placeholder)
    if most is None:
        return torch.ones(shape, dtype=each.dtype)
    return torch.randint(0, most, shape, generator=generator).to(each.dtype)


def _places(start: fx.Node) -> int | None:
    """How many rows the table has that an input is a place in; None where it is none."""
    seen, ahead, found = {start}, [start], []
    while ahead:
        node = ahead.pop()
        for reader in node.users:
            if reader.target in ("__mod__", "remainder", torch.remainder):
                found += [size for size in reader.args[1:] if isinstance(size, int)]
            elif reader.target is torch.nn.functional.nll_loss and reader.args[1] is node:
                found.append(reader.args[0].meta["shape"][1])  # type: ignore[union-attr]
            elif reader.op == "call_method" and reader not in seen:
                seen.add(reader)
                ahead.append(reader)
    return min(found, default=None)

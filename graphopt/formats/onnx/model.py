"""`read_model`: an ONNX file as a module that trains, with inputs to try it on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto, defs, inliner
from torch import Tensor, fx

from graphopt.base.errors import OnnxError
from graphopt.formats.onnx.graph import Builder
from graphopt.formats.onnx.inputs import batch_in_file, check_sizes, example, inputs_of, is_stripped, resized
from graphopt.formats.onnx.lines import name_lines
from graphopt.formats.onnx.ops import OPERATORS
from graphopt.formats.onnx.other_batch import change_of, why_rows_differ
from graphopt.formats.onnx.read import check, count_operators, opset_of, read_file
from graphopt.formats.onnx.sizes import follow_sizes, sizes_of
from graphopt.formats.onnx.weights import uses_of


@dataclass(frozen=True)
class ImportedModel:
    """A module in training mode, example inputs by their names there, and what is to be told of its gradients."""

    module: fx.GraphModule
    example_inputs: Mapping[str, Tensor]
    notes: tuple[str, ...]


def read_model(
    path: str | Path,
    dims: Mapping[str, int] | None = None,
    *,
    with_weights: bool = True,
    sizes_change: bool = False,
    seed: int = 0,
) -> ImportedModel:
    """Read an ONNX file; `dims` are sizes that have only a name in it, and others by their place: `x@0`.

    Without weights these are left as they come, for the meta device. Where sizes are to change, the graph follows the
    batch and the named sizes as far as it can. Raises OnnxError for a file that cannot be read, a size that is missing,
    and operators that are not known here, all of them at once.
    """
    place = Path(path)
    if any(size < 1 for size in (dims or {}).values()):
        raise OnnxError("a size is a whole number from 1 on")
    try:
        return import_model(
            read_file(place),
            place.parent,
            dims or {},
            with_weights=with_weights,
            sizes_change=sizes_change,
            seed=seed,
            title=re.sub(r"\W", "_", place.stem) if place.stem[:1].isalpha() else "OnnxModel",
            may_be_stripped=True,
        )
    except OnnxError as error:
        raise OnnxError(f"{place.name}: {error}") from error.__cause__


def import_model(
    model: ModelProto,
    folder: Path,
    dims: Mapping[str, int],
    *,
    with_weights: bool = True,
    sizes_change: bool = False,
    seed: int = 0,
    known: Mapping[str, Tensor] | None = None,
    title: str = "OnnxModel",
    may_be_stripped: bool = False,
) -> ImportedModel:
    """As `read_model`, of a model that was read; inputs that are `known` become constants of it.

    Where the file may be stripped of its weights, inputs that stand in their places are made as such.
    """
    model = known_operators(model)
    inputs = [each for each in inputs_of(model) if each.name not in (known or {})]
    uses = uses_of(model.graph.node)
    stripped = [each for each in inputs if may_be_stripped and is_stripped(each, uses)]
    inputs = [each for each in inputs if each not in stripped]
    in_file, own = batch_in_file(inputs), inputs
    inputs, dims = resized(inputs, dims)
    check_sizes(inputs, dims)
    shapes = [each.shape(dims) for each in inputs]
    builder = Builder(model, folder, with_weights=with_weights, title=title, batch_in_file=in_file)
    module = builder.build(inputs, shapes, known or {}, stripped)
    holes = [node for node in module.graph.nodes if node.op == "placeholder"]
    examples = {
        hole.name: example(each, dims, hole, seed + place)
        for place, (each, hole) in enumerate(zip(inputs, holes, strict=True))
    }

    def build(shapes: Sequence[Sequence[int]]) -> fx.GraphModule:
        other = Builder(model, folder, with_weights=False, batch_in_file=in_file)
        return other.build(inputs, shapes, known or {}, stripped)

    change = change_of(own, inputs, dims, sizes_change=sizes_change)
    reason = "" if change is None or not with_weights else why_rows_differ(module, build, inputs, dims, change)
    if reason and change is not None and change.is_asked_for:
        raise OnnxError(reason)
    if sizes_change and not reason:
        follow_sizes(module, shapes, sizes_of(inputs, dims), build)
    name_lines(module, f"{title}.onnx")
    return ImportedModel(module.train(), examples, builder.notes.lines())


def known_operators(model: ModelProto) -> ModelProto:
    """The model, checked, in operators that are known; those that ONNX defines by others are written out.

    Raises OnnxError with all that are left, and how often each comes.
    """
    unknown, opset = _unknown(model), opset_of(model)
    own = [name for name in unknown if "." not in name and _has_body(name, opset)]
    if len(own) < len(unknown):
        raise _not_known(unknown)
    check(model)
    if own:
        try:
            model = inliner.inline_selected_functions(model, [("", name) for name in own], inline_schema_functions=True)
        except Exception as error:  # of onnx's C++ side
            raise OnnxError(f"{_not_known(unknown)} ({error})") from None
        if _unknown(model):
            raise _not_known(unknown)
    return model


def _not_known(unknown: Mapping[str, int]) -> OnnxError:
    counted = ", ".join(f"{name} ({count}x)" for name, count in sorted(unknown.items()))
    return OnnxError(
        f"operators that are not known here: {counted}; export the model without them (as a torch model it needs no "
        "ONNX: graphopt plan FILE.py:FUNCTION)"
    )


def _unknown(model: ModelProto) -> dict[str, int]:
    return {name: count for name, count in count_operators(model).items() if name not in OPERATORS and name != "If"}


def _has_body(name: str, opset: int) -> bool:
    try:
        schema = defs.get_schema(name, opset, "")
    except Exception:  # defs.SchemaError, which is no class of Python's before some versions
        return False
    return any(getattr(schema, name, False) for name in ("has_function", "has_context_dependent_function"))

"""An ONNX file as checked data: limits first, then onnx's own checker; nothing of it is ever run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, checker, helper, inliner

from graphopt.base.errors import OnnxError

#: protobuf knows no larger message; weights beyond that stand in files of their own.
MOST_BYTES = 2**31 - 1
MOST_NODES = 200_000
#: Graphs inside of graphs (`If`) that may stand in each other.
_DEEPEST = 16
#: Tensors that the checker need not see.
_SMALL_BYTES = 4096
_OWN_DOMAINS = ("", "ai.onnx")


def read_file(path: str | Path) -> ModelProto:
    """The model of a file, its own functions written out where they are called; it is not checked yet.

    Raises OnnxError where it is no such file, or too large.
    """
    place = Path(path)
    try:
        if not place.is_file():  # a pipe neither
            raise OnnxError(f"there is no file {str(path)!r} (looked in {Path.cwd()})")
        if place.stat().st_size > MOST_BYTES:
            raise OnnxError(f"{path} has more than {MOST_BYTES:,} bytes: keep its weights in a file beside it")
        raw = place.read_bytes()
    except (OSError, ValueError) as error:
        if isinstance(error, OnnxError):
            raise
        raise OnnxError(f"cannot read {path}: {error}") from None
    return read_bytes(raw)


def read_bytes(raw: bytes) -> ModelProto:
    """As `read_file`, of what a file holds."""
    model = ModelProto()
    try:
        model.ParseFromString(raw)
    except (DecodeError, RecursionError, ValueError) as error:
        raise OnnxError(f"this is no ONNX file: {error}") from None
    if not model.graph.node and not model.graph.output:
        raise OnnxError("this is no ONNX file, or one without a graph")
    _check_sizes(model)
    _check_text(model)
    if model.functions:
        try:
            model = inliner.inline_local_functions(model)
        except Exception as error:  # of onnx's C++ side, each of its own kind
            raise OnnxError(f"the file's own functions break ONNX's rules: {_first_lines(error)}") from None
        _check_sizes(model)
    return model


def check(model: ModelProto) -> None:
    """Raise OnnxError where a model breaks ONNX's rules."""
    try:
        checker.check_model(_without_weights(model), check_custom_domain=False)
    except Exception as error:  # of onnx's C++ side, each of its own kind
        raise OnnxError(f"the file breaks ONNX's rules: {_first_lines(error)}") from None


def opset_of(model: ModelProto) -> int:
    """The version of ONNX's own operators; files before opsets were known have 1."""
    return max((entry.version for entry in model.opset_import if entry.domain in _OWN_DOMAINS), default=1)


def is_own(node: NodeProto) -> bool:
    """Whether an operator is of ONNX's own domain."""
    return node.domain in _OWN_DOMAINS


def nodes_of(graph: GraphProto, depth: int = 0) -> Iterator[NodeProto]:
    """All nodes, those of graphs inside too."""
    if depth > _DEEPEST:
        raise OnnxError(f"graphs stand in each other more than {_DEEPEST} deep")
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.type == AttributeProto.GRAPH else []), *attribute.graphs):
                yield from nodes_of(inner, depth + 1)


def count_operators(model: ModelProto) -> Counter[str]:
    """How often each operator comes; those of other domains with the domain in front."""
    return Counter(node.op_type if is_own(node) else f"{node.domain}.{node.op_type}" for node in nodes_of(model.graph))


def _check_sizes(model: ModelProto) -> None:
    if sum(1 for _ in nodes_of(model.graph)) > MOST_NODES:
        raise OnnxError(f"the graph has more than {MOST_NODES:,} nodes")
    if model.graph.sparse_initializer:
        raise OnnxError("sparse initialisers are not known here")


def _check_text(model: ModelProto) -> None:
    """Raise OnnxError where a name is not UTF-8: protobuf hands it out as bytes."""
    graph = model.graph
    names = chain.from_iterable(
        (
            *((node.op_type, node.domain, node.name, *node.input, *node.output) for node in nodes_of(graph)),
            *((attribute.name,) for node in nodes_of(graph) for attribute in node.attribute),
            *((each.name,) for each in (*graph.initializer, *graph.input, *graph.output)),
            *((dim.dim_param for dim in each.type.tensor_type.shape.dim) for each in graph.input),
            *((entry.key, entry.value) for each in graph.initializer for entry in each.external_data),
            *((entry.domain,) for entry in model.opset_import),
        )
    )
    if not all(isinstance(name, str) for name in names):
        raise OnnxError("this is no ONNX file: a name in it is not UTF-8")


def _without_weights(model: ModelProto) -> ModelProto:
    """The model with its larger tensors as inputs: the checker would only copy them, or look for their files."""
    light = ModelProto()
    light.ir_version = model.ir_version
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    light.graph.name = model.graph.name
    light.graph.node.extend(model.graph.node)
    light.graph.input.extend(model.graph.input)
    light.graph.output.extend(model.graph.output)
    for each in (*light.graph.input, *light.graph.output):
        if each.type.HasField("tensor_type"):
            each.type.tensor_type.shape.SetInParent()  # many files say nothing of what comes out
    there = {each.name for each in light.graph.input}
    for tensor in model.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL and tensor.ByteSize() <= _SMALL_BYTES:
            light.graph.initializer.append(tensor)
        elif tensor.name not in there:
            light.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return light


def _first_lines(error: Exception) -> str:
    return " ".join(str(error).split())[:400]

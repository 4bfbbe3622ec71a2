"""The graph of an ONNX file, node by node, as a module of torch that trains."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto
from torch import Tensor, fx, nn

from graphopt.base.errors import OnnxError
from graphopt.formats.onnx.inputs import OnnxInput
from graphopt.formats.onnx.notes import Notes
from graphopt.formats.onnx.ops import OPERATORS
from graphopt.formats.onnx.ops.node import OnnxNode, is_known
from graphopt.formats.onnx.parameters import Parameters
from graphopt.formats.onnx.read import is_own, nodes_of, opset_of
from graphopt.formats.onnx.recorder import Recorder
from graphopt.formats.onnx.tensors import MissingData, TensorKind, kind_of, to_torch
from graphopt.formats.onnx.weights import Uses, uses_of

_NOT_IN_NAMES = re.compile(r"\W")


class Builder:
    """One import: values by their names in the file, and what there is to tell of them."""

    def __init__(
        self,
        model: ModelProto,
        folder: Path,
        *,
        with_weights: bool,
        title: str = "OnnxModel",
        batch_in_file: int | None = None,
    ) -> None:
        self.batch_in_file = batch_in_file
        #: That, and the one that is asked for; None where the file has none.
        self.batch: tuple[int, int] | None = None
        self.of_inputs: set[str] = set()
        self.model, self.folder, self.with_weights, self.title = model, folder, with_weights, title
        self.opset = opset_of(model)
        self.root = nn.Module()
        self.recorder = Recorder(self.root)
        self.notes = Notes()
        self.values: dict[str, Any] = {"": None}
        self.uses: Uses = uses_of(nodes_of(model.graph))
        self.parameters = Parameters(self.root, self.recorder, self.uses, self.notes, with_weights=with_weights)
        self._count = 0

    def build(
        self,
        inputs: Sequence[OnnxInput],
        shapes: Sequence[Sequence[int]],
        known: Mapping[str, Tensor],
        stripped: Sequence[OnnxInput] = (),
    ) -> fx.GraphModule:
        """The module of inputs of these shapes; what is `known` besides is a constant of it.

        Inputs that a file was `stripped` of, its weights, are made at random. Raises OnnxError with node and operator.
        """
        self.values.update(known)
        self.batch = None if self.batch_in_file is None else (self.batch_in_file, shapes[0][0])
        self.of_inputs.update(each.name for each in inputs)
        for each in stripped:
            value = self.parameters.at_random(each.name, TensorKind(tuple(each.shape({})), each.dtype))
            trains = self.uses.trains(each.name, value.numel(), floating=True)
            self.values[each.name] = self.parameters.add(each.name, value) if trains else value
        for each, shape in zip(inputs, shapes, strict=True):
            name = _NOT_IN_NAMES.sub("_", each.name) or "input"
            name = name if not name[0].isdigit() else f"input_{name}"
            self.values[each.name] = self.recorder.placeholder(name, shape, each.dtype)
        for tensor in self.model.graph.initializer:
            self.values[tensor.name] = self._initialiser(tensor)
        with self.recorder, _without_torchs_reports():
            self._run(self.model.graph)
        missing = [each.name for each in self.model.graph.output if self.values.get(each.name) is None]
        if missing:
            raise OnnxError(f"no node makes the output {missing[0]!r}")
        self.recorder.output([self.values[each.name] for each in self.model.graph.output])
        self.notes.tell_weights(self.uses, {name for name, value in self.values.items() if self._is_weight(value)})
        module = fx.GraphModule(self.root, self.recorder.graph, self.title)
        module.graph.eliminate_dead_code()
        module.recompile()
        return module

    def _run(self, graph: GraphProto) -> None:
        for node in graph.node:
            self._count += 1
            self.recorder.position = self._count
            label = f"{node.op_type} node {node.name or f'number {self._count}'!r}"
            try:
                results = self._branch(node) if node.op_type == "If" and is_own(node) else self._call(node)
            except OnnxError as error:
                raise OnnxError(f"{label}: {error}" if label not in str(error) else str(error)) from None
            except Exception as error:
                reason = " ".join(str(error).split())[:300] or type(error).__name__
                raise OnnxError(f"{label} cannot be computed: {reason}") from error
            for name, result in zip(node.output, results, strict=False):
                if name:
                    self.values[name] = result

    def _call(self, node: NodeProto) -> Sequence[Any]:
        attributes = {each.name: self._attribute(each) for each in node.attribute}
        is_of_inputs = not self.of_inputs.isdisjoint(node.input)
        if is_of_inputs:
            self.of_inputs.update(node.output)
        asked = OnnxNode(
            node.op_type, node.name, self.opset, attributes, tuple(self._is_read(name) for name in node.output),
            self._layer(node), self.batch if is_of_inputs else None,
        )  # fmt: skip
        missing = [name for name in node.input if name not in self.values]
        if missing:
            raise OnnxError(f"nothing makes its input {missing[0]!r}")
        inputs = [self.values[name] for name in node.input]
        if any(not is_known(value) for value in inputs):
            inputs = [self._read(node, place, value) for place, value in enumerate(inputs)]
        while inputs and inputs[-1] is None:
            inputs.pop()
        self.notes.see(node, inputs)
        result = OPERATORS[node.op_type](asked, *inputs)
        return result if isinstance(result, tuple) else (result,)

    def _read(self, node: NodeProto, place: int, value: Any) -> Any:
        """What a node reads, as a parameter where it is one; of the first to read it, for others too."""
        if not is_own(node) or value is None:
            return value
        found = self.parameters.of_input(node, place, value)
        if is_known(value) and not is_known(found):
            self.values[node.input[place]] = found
        return found

    def _branch(self, node: NodeProto) -> Sequence[Any]:
        """The branch of an `If` that is always taken."""
        condition = self.values.get(node.input[0])
        if not isinstance(condition, Tensor) or not is_known(condition):
            raise OnnxError("its condition depends on what the model's inputs hold: a plan is for one way only")
        name = "then_branch" if bool(condition.reshape(-1)[0]) else "else_branch"
        graph = next(each.g for each in node.attribute if each.name == name)
        for tensor in graph.initializer:
            self.values[tensor.name] = self._initialiser(tensor)
        self._run(graph)
        return [self.values[each.name] for each in graph.output]

    def _is_read(self, name: str) -> bool:
        return bool(name) and (name in self.uses.readers or any(name == each.name for each in self.model.graph.output))

    def _layer(self, node: NodeProto) -> Any:
        def layer(module: nn.Module, *inputs: Any) -> Any:
            # one name without dots: parameters of the file may stand at the dotted one
            wanted = _NOT_IN_NAMES.sub("_", node.name.strip("/")) or f"{node.op_type}_{self._count}"
            wanted = f"node_{wanted}" if wanted[0].isdigit() else wanted
            return self.recorder.layer(self.parameters.target(wanted), module, *inputs)

        return layer

    def _initialiser(self, tensor: TensorProto) -> Tensor:
        """A parameter where it trains, else what it holds."""
        kind = kind_of(tensor)

        def read() -> Tensor:
            try:
                return to_torch(tensor, self.folder)
            except MissingData:
                if not kind.dtype.is_floating_point:
                    raise
                return self.parameters.at_random(tensor.name, kind)

        try:
            return self.parameters.of_initialiser(tensor.name, kind, read)
        except MissingData as error:
            raise OnnxError(f"tensor {tensor.name!r} stands in {error}, which is not there: sizes need it") from None

    def _is_weight(self, value: Any) -> bool:
        return isinstance(value, Tensor) and not is_known(value) and self.recorder.is_parameter(value)

    def _attribute(self, each: AttributeProto) -> Any:
        kind = each.type
        if kind == AttributeProto.STRING:
            return each.s.decode("utf-8", "replace")
        if kind == AttributeProto.STRINGS:
            return [text.decode("utf-8", "replace") for text in each.strings]
        if kind == AttributeProto.TENSOR:
            try:
                return to_torch(each.t, self.folder)
            except MissingData as error:
                raise OnnxError(f"its attribute {each.name!r} stands in {error}, which is not there") from None
        fields: dict[int, Any] = {
            AttributeProto.FLOAT: each.f, AttributeProto.INT: each.i,
            AttributeProto.FLOATS: list(each.floats), AttributeProto.INTS: list(each.ints),
        }  # fmt: skip
        return fields.get(kind)


@contextmanager
def _without_torchs_reports() -> Iterator[None]:
    """Without the tracebacks that torch logs where shapes do not fit; the error says it."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before

"""Files made for one batch, read in another: the rows that they compute alone, or a refusal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional as F

from graphopt.base.errors import OnnxError
from graphopt.formats.onnx.inputs import inputs_of, resized
from graphopt.formats.onnx.model import ImportedModel, import_model, read_model
from graphopt.formats.onnx.other_batch import change_of
from tests.support.onnx_backend import NOWHERE


def read(nodes: Sequence[onnx.NodeProto], sizes: Sequence[int], **constants: Any) -> onnx.ModelProto:
    """A file from x to y, with constants by name."""
    kinds = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", sizes), ("y", None))]
    tensors = [numpy_helper.from_array(np.array(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "made", [kinds[0]], [kinds[1]], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def chain(*steps: tuple[Any, ...]) -> list[onnx.NodeProto]:
    """Nodes one behind the other: op, further inputs, attributes."""
    names = ["x", *(f"h{i}" for i in range(1, len(steps))), "y"]
    return [
        helper.make_node(op, [names[i], *more], [names[i + 1]], **attributes)
        for i, (op, more, attributes) in enumerate(steps)
    ]


#: Each has the right shapes at any batch, or nearly, and mixes rows or drops them.
TIED = {
    "merged groups": (
        chain(("Reshape", ["g"], {}), ("Softmax", [], {"axis": 1}), ("Reshape", ["b"], {})),
        {"g": [2, -1], "b": [1, 4, 8]},
    ),
    "merged rows": (
        chain(("Reshape", ["g"], {}), ("Softmax", [], {"axis": 0}), ("Reshape", ["b"], {})),
        {"g": [-1, 8], "b": [1, 4, 8]},
    ),
    "one long sequence": (
        chain(("Reshape", ["g"], {}), ("Reshape", ["b"], {}), ("Softmax", [], {"axis": 1})),
        {"g": [-1, 8], "b": [1, -1, 8]},
    ),
    "transposed": (
        chain(("Transpose", [], {"perm": [1, 0, 2]}), ("Reshape", ["b"], {})),
        {"b": [1, 4, 8]},
    ),
    "sizes that are alike": (
        chain(("Transpose", [], {"perm": [1, 0, 2]}), ("Reshape", ["b"], {})),
        {"b": [1, -1]},
    ),
    "a first row": (chain(("Slice", ["zero", "one", "zero"], {})), {"zero": [0], "one": [1]}),
    "a row that is taken": (chain(("Gather", ["zero"], {"axis": 0})), {"zero": [0]}),
    "over all rows": (chain(("Softmax", [], {"axis": 0})), {}),
}


@pytest.mark.parametrize("batch", [3, 4, 11])
@pytest.mark.parametrize("name", TIED)
def test_rows_that_would_be_mixed_are_refused(name: str, batch: int) -> None:
    nodes, constants = TIED[name]
    file = read(nodes, [1, 4, 8], **constants)
    assert import_model(file, NOWHERE, {}).example_inputs["x"].shape[0] == 1
    with pytest.raises(OnnxError, match=r"row by row|cannot be run in a batch|cannot be computed"):
        import_model(file, NOWHERE, {"x@0": batch})


@pytest.mark.parametrize("name", TIED)
def test_a_graph_that_would_mix_them_does_not_follow_the_batch(name: str) -> None:
    nodes, constants = TIED[name]
    module = import_model(read(nodes, [1, 4, 8], **constants), NOWHERE, {}, sizes_change=True).module
    assert not [node for node in module.graph.nodes if node.target == "size"]


#: They follow the batch.
FREE = {
    "heads": (chain(("Reshape", ["g"], {}), ("Softmax", [], {"axis": 2}), ("Reshape", ["b"], {})),
              {"g": [1, 2, 2, 8], "b": [1, -1]}),
    "the rest": (chain(("Reshape", ["g"], {}), ("Softmax", [], {"axis": 1})), {"g": [1, -1]}),
    "a mean over all": (chain(("ReduceMean", [], {"keepdims": 0})), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", FREE)
def test_what_is_free_of_the_batch_follows(name: str) -> None:
    nodes, constants = FREE[name]
    file = read(nodes, [1, 4, 8], **constants)
    x = torch.randn(5, 4, 8)
    alone = import_model(file, NOWHERE, {}).module
    (got,) = import_model(file, NOWHERE, {"x@0": 5}).module(x)
    rows = torch.stack([alone(row[None])[0] for row in x])
    torch.testing.assert_close(got, rows.mean(0) if got.dim() == 0 else rows.flatten(0, 1))


def test_a_file_of_two_rows_is_read_in_one_and_in_three() -> None:
    file = read(*FREE["the rest"][:1], [2, 4, 8], g=[2, -1])
    x = torch.randn(4, 4, 8)
    wanted = torch.cat([import_model(file, NOWHERE, {}).module(part)[0] for part in x.split(2)])
    for batch in (1, 3):
        torch.testing.assert_close(import_model(file, NOWHERE, {"x@0": batch}).module(x[:batch])[0], wanted[:batch])


class Pyramid(nn.Module):
    """Resized to a size in numbers, batch and channels among them, in what torch's exporter writes."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Conv2d(3, 3, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(self.c(x), size=x.shape[2:]) + x


def test_a_batch_is_not_resized(tmp_path: Any) -> None:
    pytest.importorskip("onnxscript")
    model, path = Pyramid().eval(), tmp_path / "pyramid.onnx"
    torch.onnx.export(model, (torch.randn(1, 3, 8, 8),), path, input_names=["x"], dynamo=True, verbose=False)
    x = torch.randn(3, 3, 8, 8)
    found: ImportedModel = read_model(path, {"x@0": 3})
    with torch.no_grad():
        torch.testing.assert_close(found.module.eval()(x)[0], model(x), rtol=1e-4, atol=1e-5)


def test_batches_that_change_in_several_ways_are_refused() -> None:
    file = read(chain(("Add", ["z"], {})), [1, 4])
    file.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 4]))
    own = inputs_of(file)
    assert change_of(own, own, {}, sizes_change=False) is None
    with pytest.raises(OnnxError, match="in several ways"):
        change_of(own, resized(own, {"x@0": 3, "z@0": 4})[0], {}, sizes_change=False)
    assert import_model(file, NOWHERE, {"x@0": 3, "z@0": 3}).example_inputs["z"].shape == (3, 4)

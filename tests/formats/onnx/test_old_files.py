"""Files of the years from opset 6 on, as exporters of their time wrote them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.backend.test
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor
from torch.nn import functional as F

from graphopt.formats.onnx.model import import_model, read_model
from tests.support.onnx_backend import NOWHERE

#: Files of the model zoo whose weights are made by nodes, so that they are small: opset 9, from Caffe2.
PUBLIC = Path(onnx.backend.test.__file__).parent / "data" / "light"


def run(nodes: Sequence[onnx.NodeProto], opset: int, x: Tensor, **weights: Tensor) -> Tensor:
    """What a graph of nodes from x to y computes in evaluation."""
    kinds = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", list(x.shape)), ("y", None))]
    tensors = [numpy_helper.from_array(value.numpy(), name) for name, value in weights.items()]
    # files of that time also name their initialisers as inputs
    inputs = [helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in tensors]
    graph = helper.make_graph(nodes, "old", [kinds[0], *inputs], [kinds[1]], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=3)
    with torch.no_grad():
        found: Tensor = import_model(model, NOWHERE, {}).module.eval()(x)[0]
    return found


def node(op: str, *inputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, ["x", *inputs], ["y"], **attributes)


X = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
PARTS = {
    "add of opset 6, by axis": (6, node("Add", "b", broadcast=1, axis=1), X + torch.tensor([1.0, 2, 3])[:, None, None]),
    "clip by attributes": (6, node("Clip", min=-0.5, max=0.25), X.clamp(-0.5, 0.25)),
    "dropout that is a test": (6, node("Dropout", is_test=1, ratio=0.9), X),
    "dropout without a flag": (7, node("Dropout", ratio=0.9), X),
    "pad by attributes": (9, node("Pad", pads=[0, 0, 1, 0, 0, 0, 0, 2], value=3.0), F.pad(X, (0, 2, 1, 0), value=3.0)),
    "reduction by attributes": (9, node("ReduceMean", axes=[2, 3], keepdims=0), X.mean((2, 3))),
    "slice by attributes": (9, node("Slice", axes=[3, 1], starts=[1, -2], ends=[-1, 9]), X[:, -2:, :, 1:-1]),
    "softmax over all behind its axis": (9, node("Softmax", axis=1), X.flatten(1).softmax(1).reshape(X.shape)),
    "split by attribute": (9, node("Split", axis=1, split=[3]), X),
    "unsqueeze by attribute": (9, node("Unsqueeze", axes=[0]), X[None]),
    "upsample by attribute": (7, node("Upsample", scales=[1.0, 1.0, 2.0, 3.0]), F.interpolate(X, (8, 18))),
    "upsample by input": (9, node("Upsample", "s", mode="nearest"), F.interpolate(X, (8, 18))),
    "resize of opset 10": (10, node("Resize", "s", mode="nearest"), F.interpolate(X, (8, 18))),
    "top k by attribute": (9, helper.make_node("TopK", ["x"], ["y", "places"], k=2), X.topk(2).values),
    "flatten": (6, node("Flatten"), X.flatten(1)),
}  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
def test_old_forms_of_operators(name: str) -> None:
    opset, one, wanted = PARTS[name]
    held = {"b": torch.tensor([1.0, 2.0, 3.0]), "s": torch.tensor([1.0, 1.0, 2.0, 3.0])}
    weights = {each: held[each] for each in one.input if each in held}
    torch.testing.assert_close(run([one], opset, X, **weights), wanted)


@pytest.mark.parametrize(("opset", "attributes"), [(6, {"is_test": 1}), (7, {}), (9, {"momentum": 0.9}), (14, {})])
def test_batch_normalisation_of_all_times(opset: int, attributes: dict[str, Any]) -> None:
    held = {name: torch.rand(3) + 0.5 for name in ("scale", "bias", "mean", "var")}
    wanted = F.batch_norm(X, held["mean"], held["var"], held["scale"], held["bias"], False, 0.1, 1e-5)
    got = run([node("BatchNormalization", *held, epsilon=1e-5, **attributes)], opset, X, **held)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.fast(1)
@pytest.mark.parametrize("name", ["bvlc_alexnet", "inception_v1", "squeezenet", "resnet50"])
def test_public_files_in_another_batch_than_they_were_made_for(name: str) -> None:
    """Their batch of 1 stands in their inputs, and for most in a Reshape too."""
    path = PUBLIC / f"light_{name}.onnx"
    if not path.is_file():
        pytest.skip("an onnx without these files")
    alone = read_model(path)
    weights = {each.name for each in onnx.load(path).graph.initializer}
    (given,) = (each.name for each in onnx.load(path).graph.input if each.name not in weights)
    three = read_model(path, {f"{given}@0": 3}, sizes_change=True)
    ((hole, x),) = three.example_inputs.items()
    assert x.shape[0] == 3
    with torch.no_grad():
        (got,) = three.module.eval()(x)
        wanted = torch.cat([alone.module.eval()(row[None])[0] for row in x])
        torch.testing.assert_close(got, wanted.reshape(got.shape), rtol=1e-4, atol=1e-6)
        (five,) = three.module(**{hole: torch.cat([x, x[:2]])})
    torch.testing.assert_close(five, torch.cat([got, got[:2]]), rtol=1e-4, atol=1e-6)


def test_a_batch_that_is_named_in_reshapes_follows_inputs_alone() -> None:
    """A shape that begins with the file's batch by chance, of a weight, is left as it is."""
    one = [
        helper.make_node("Reshape", ["w", "row"], ["wide"]),
        helper.make_node("Reshape", ["x", "all"], ["flat"]),
        helper.make_node("Mul", ["flat", "wide"], ["y"]),
    ]
    tensors = [
        numpy_helper.from_array(value, name)
        for name, value in (
            ("w", np.arange(8, dtype=np.float32).reshape(4, 2)),
            ("row", np.array([1, -1])),
            ("all", np.array([1, 8])),
        )
    ]
    kinds = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [1, 2, 4]), ("y", None))]
    graph = helper.make_graph(one, "rows", [kinds[0]], [kinds[1]], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    x = torch.randn(4, 2, 4)
    (got,) = import_model(model, NOWHERE, {"x@0": 4}).module(x)
    torch.testing.assert_close(got, x.reshape(4, 8) * torch.arange(8.0))


@pytest.mark.fast(1)
@pytest.mark.parametrize("name", ["squeezenet", "shufflenet", "inception_v2", "resnet50", "densenet121"])
def test_public_files_compute_what_onnx_says(name: str) -> None:
    """In evaluation, what stands beside them; and in training every weight has a gradient."""
    path = PUBLIC / f"light_{name}.onnx"
    if not path.is_file():
        pytest.skip("an onnx without these files")
    found = read_model(path)
    (example,) = found.example_inputs.values()
    x = torch.arange(example.numel(), dtype=torch.float32).reshape(example.shape) / example.numel()
    with torch.no_grad():
        (got,) = found.module.eval()(x)
    wanted = numpy_helper.to_array(onnx.load_tensor(path.with_name(f"{path.stem}_output_0.pb")))
    np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-3, atol=1e-5)
    if name == "squeezenet":
        found.module.train()(x)[0].square().sum().backward()
        assert all(p.grad is not None for p in found.module.parameters())

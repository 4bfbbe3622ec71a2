"""Models through torch's exporter and back: they compute and train as before."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from graphopt.base.errors import OnnxError
from graphopt.formats.onnx.model import ImportedModel, import_model
from graphopt.formats.onnx.read import read_bytes
from tests.support.onnx_backend import NOWHERE
from tests.support.onnx_models import MODELS, Exported, export

Get = Callable[[str], Exported]
LIKE = 1e-5


def imported(proto: onnx.ModelProto, dims: Mapping[str, int] = {"N": 2}, **options: Any) -> ImportedModel:
    return import_model(read_bytes(proto.SerializeToString()), NOWHERE, dims, **options)


def norms(model: nn.Module, output: Tensor) -> tuple[Tensor, dict[str, float]]:
    """The output, and norms of the gradients of its weighted sum, by parameter."""
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    (output * weights).sum().backward()
    named = {n: float(torch.linalg.vector_norm(p.grad)) for n, p in model.named_parameters() if p.grad is not None}
    return output.detach(), named


@pytest.mark.fast(5)
@pytest.mark.parametrize("name", MODELS)
def test_a_model_trains_as_it_did_before_its_export(name: str, exported: Get) -> None:
    """Whole parameters, under their own names; outputs and gradients to 1e-5."""
    file = exported(name)
    found = imported(file.proto)
    assert [tuple(each.shape) for each in found.example_inputs.values()] == [tuple(x.shape) for x in file.inputs]
    before = copy.deepcopy(file.model)
    wanted, gradients = norms(before, before(*file.inputs))
    got, mine = norms(found.module, found.module(*file.inputs)[0])
    torch.testing.assert_close(got, wanted, rtol=LIKE, atol=LIKE)
    sizes = {n: p.shape for n, p in before.named_parameters()}
    assert {n: p.shape for n, p in found.module.named_parameters()} == sizes
    largest = max(gradients.values())
    assert mine == pytest.approx(gradients, rel=LIKE, abs=LIKE * largest)


@pytest.mark.fast(2)
@pytest.mark.parametrize("name", sorted(set(MODELS) - {"lstm"}))
def test_one_graph_serves_other_batches(name: str, exported: Get) -> None:
    file = exported(name)
    found = imported(file.proto, sizes_change=True)
    five = [torch.cat([x, x, x])[:5] for x in file.inputs]
    wanted = copy.deepcopy(file.model)(*five)
    torch.testing.assert_close(found.module(*five)[0], wanted, rtol=LIKE, atol=LIKE)


def test_statistics_of_batches_follow_the_mode(exported: Get) -> None:
    file = exported("cnn")
    found, before = imported(file.proto), copy.deepcopy(file.model)
    for model in (found.module, before):
        model(*file.inputs)
    one, two = found.module.eval()(*file.inputs)[0], before.eval()(*file.inputs)
    torch.testing.assert_close(one, two, rtol=LIKE, atol=LIKE)


def test_lines_are_numbers_of_nodes(exported: Get) -> None:
    file = exported("cnn")
    module = imported(file.proto, title="cnn").module
    with pytest.raises(RuntimeError) as caught:
        module(torch.randn(2, 3, 1, 1))  # too small for the pooling
    (frame,) = (frame for frame in caught.traceback if str(frame.path).endswith("<cnn.onnx>"))
    assert file.proto.graph.node[frame.lineno].op_type == "MaxPool"


def test_dropout_is_there_in_training_alone() -> None:
    node = onnx.helper.make_node("Dropout", ["y"], ["z"], ratio=0.5)
    proto = of_nodes([onnx.helper.make_node("MatMul", ["x", "w"], ["y"]), node], {"w": torch.randn(4, 4)}, opset=9)
    model, x = imported(proto, {}).module, torch.randn(2, 4)
    assert bool((model(x)[0] == 0).any()) and not bool((model.eval()(x)[0] == 0).any())


def test_what_changes_gradients_is_told_of() -> None:
    torch.manual_seed(0)
    folded = export("cnn", training=torch.onnx.TrainingMode.EVAL, do_constant_folding=True)
    (line,) = (line for line in imported(folded.proto, {}).notes if "normalisation" in line)
    assert "training mode" in line


def test_equal_weights_that_were_merged_are_taken_apart() -> None:
    """Of a fresh model the exporter keeps one of all vectors of ones, and one of all zeros."""
    file = export("mixer", training=torch.onnx.TrainingMode.EVAL, do_constant_folding=False)
    assert sum(each.name.startswith("norms") for each in file.proto.graph.initializer) == 2
    found, before = imported(file.proto, {}), copy.deepcopy(file.model)
    assert any("taken apart again: 2, norms.0.bias, norms.0.weight" in line for line in found.notes)
    _, gradients = norms(before, before(*file.inputs))
    _, mine = norms(found.module, found.module(*file.inputs)[0])
    assert mine == pytest.approx(gradients, rel=LIKE, abs=LIKE)


def test_tied_weights_stay_one(exported: Get) -> None:
    assert any("several places" in line for line in imported(exported("gpt2").proto).notes)


def test_what_an_exporter_joined_is_told_of() -> None:
    options = {"training": torch.onnx.TrainingMode.EVAL, "do_constant_folding": True}
    assert any("made of others" in line for line in imported(export("lstm", **options).proto, {}).notes)


def test_quantised_weights_train_as_what_they_stand_for() -> None:
    nodes = [
        onnx.helper.make_node("DequantizeLinear", ["q", "scale"], ["w"]),
        onnx.helper.make_node("MatMul", ["x", "w"], ["y"]),
        onnx.helper.make_node("QuantizeLinear", ["y", "scale"], ["z"]),
        onnx.helper.make_node("DequantizeLinear", ["z", "scale"], ["out"]),
    ]
    weights = {"q": torch.randint(-9, 9, (4, 4), dtype=torch.int8), "scale": torch.tensor(0.5)}
    found = imported(of_nodes(nodes, weights, opset=19), {})
    (parameter,) = found.module.parameters()
    torch.testing.assert_close(parameter.detach(), weights["q"].float() * 0.5)
    assert any("quantised weights" in line for line in found.notes)
    assert any("let no gradient through" in line for line in found.notes)


def test_all_operators_that_are_not_known_are_named_at_once() -> None:
    names = ("Unique", "NonMaxSuppression", "Unique", "StringConcat")
    nodes = [
        onnx.helper.make_node(name, ["x"] * (2 if name != "Unique" else 1), [f"y{i}"]) for i, name in enumerate(names)
    ]
    nodes.append(onnx.helper.make_node("Mystery", ["x"], ["z"], domain="some.where"))
    model = of_nodes(nodes, {}, opset=20)
    model.opset_import.add(domain="some.where", version=1)
    with pytest.raises(
        OnnxError, match=r"NonMaxSuppression \(1x\), StringConcat \(1x\), Unique \(2x\), some.where.Mystery"
    ):
        import_model(model, NOWHERE, {})


def test_an_operator_that_is_defined_by_others_is_written_out() -> None:
    schemas = [s for s in onnx.defs.get_all_schemas() if s.name == "SwiGLU"]
    if not schemas:
        pytest.skip("an onnx without the operator")
    proto = of_nodes([onnx.helper.make_node("SwiGLU", ["x", "x"], ["y"])], {}, schemas[0].since_version)
    x = torch.randn(2, 4)
    torch.testing.assert_close(imported(proto, {}).module(x)[0], x * torch.nn.functional.silu(x))


def of_nodes(nodes: list[onnx.NodeProto], weights: Mapping[str, Tensor], opset: int) -> onnx.ModelProto:
    """A model from x [2, 4] to what the last node makes."""
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2, 4])
    out = onnx.helper.make_tensor_value_info(nodes[-1].output[0], onnx.TensorProto.FLOAT, None)
    tensors = [numpy_helper.from_array(value.numpy(), name) for name, value in weights.items()]
    graph = onnx.helper.make_graph(nodes, "graph", [x], [out], tensors)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=9)

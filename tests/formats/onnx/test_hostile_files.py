"""Files are data: what is wrong with one is said, and nothing outside of its folder is opened."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from graphopt.base.errors import GraphoptError, OnnxError
from graphopt.formats.onnx import read
from graphopt.formats.onnx.model import import_model, read_model
from graphopt.formats.onnx.read import read_bytes
from tests.support.onnx_backend import NOWHERE
from tests.support.onnx_models import Exported
from tests.support.onnx_mutants import mutant

SEEDS, PARTS = 1000, 10
BASES = ("cnn", "mobilenet", "mixer", "lstm", "unet")


@pytest.mark.fast(1)
@pytest.mark.parametrize("part", range(PARTS))
def test_mutated_files_are_read_or_refused(part: int, exported: Callable[[str], Exported]) -> None:
    """Each part has its own seeds; an error that is not ours would end the test."""
    for seed in range(part, SEEDS, PARTS):
        raw = mutant(exported(BASES[seed // PARTS % len(BASES)]).raw, seed)
        try:
            import_model(read_bytes(raw), NOWHERE, {"N": 2})
        except GraphoptError as error:
            assert str(error)


def with_external_weight(folder: Path, location: str, shape: tuple[int, ...] = (4, 4), **entries: str) -> Path:
    """A file whose only weight stands at `location`."""
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        weight.external_data.add(key=key, value=value)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "graph", [x], [y], [weight])
    path = folder / "model.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize(
    "location",
    ["/etc/passwd", "../secret.bin", "a/../../secret.bin", "..\\secret.bin", "C:\\secret.bin", "", "link.bin", "a\0b"],
)
def test_weights_outside_of_the_folder_are_not_read(location: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(64))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    with pytest.raises(OnnxError, match=r"only files in the model's folder|out of the model's folder"):
        read_model(with_external_weight(folder, location))


def test_weights_beside_the_file_are_read(tmp_path: Path) -> None:
    weight = torch.randn(4, 4)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "w.bin").write_bytes(bytes(8) + weight.numpy().tobytes())
    path = with_external_weight(tmp_path, "weights/w.bin", offset="8", length="64")
    (parameter,) = read_model(path).module.parameters()
    assert torch.equal(parameter, weight)


@pytest.mark.parametrize("entries", [{"offset": "1"}, {"offset": "-1"}, {"length": "63"}, {"offset": "x"}])
def test_weights_that_end_early_are_refused(entries: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(64))
    with pytest.raises(OnnxError, match="tensor 'w'"):
        read_model(with_external_weight(tmp_path, "w.bin", **entries))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names")
def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "w.bin")
    with pytest.raises(OnnxError, match="tensor 'w'"):
        read_model(with_external_weight(tmp_path, "w.bin"))


def test_weights_that_are_missing_are_made_and_told_of(tmp_path: Path) -> None:
    found = read_model(with_external_weight(tmp_path, "w.bin"))
    assert [tuple(p.shape) for p in found.module.parameters()] == [(4, 4)]
    assert any("not there, made at random: 1, w" in line for line in found.notes)


LARGE = 2**40
BOMBS = {
    "zeros": [("ConstantOfShape", ["two"], {}), ("Add", ["x", "_0"], {})],
    "places": [("Range", ["zero", "large", "one"], {}), ("Cast", ["_0"], {"to": 1}), ("Add", ["x", "_1"], {})],
    "fractions": [("Range", ["f0", "f1", "tiny"], {}), ("Add", ["x", "_0"], {})],
    "copies": [("Tile", ["f", "two"], {}), ("Add", ["x", "_0"], {})],
    "sums": [("Expand", ["f", "two"], {}), ("Add", ["_0", "f"], {}), ("Add", ["x", "_1"], {})],
    "sizes": [("Resize", ["x", "", "scales"], {"mode": "cubic"})],
}


@pytest.mark.parametrize("name", BOMBS)
def test_what_would_fill_the_memory_is_refused(name: str) -> None:
    kinds = {"one": 7, "zero": 7, "large": 7, "two": 7, "f0": 1, "f1": 1, "tiny": 1, "f": 1, "scales": 1}
    numbers = {"one": 1, "zero": 0, "large": LARGE, "f0": 0.0, "f1": 1.0, "tiny": 1e-12}
    tensors = [helper.make_tensor(n, kinds[n], [], [v]) for n, v in numbers.items()]
    tensors += [helper.make_tensor("two", 7, [2], [2**20, 2**20]), helper.make_tensor("f", 1, [1, 1], [1.0])]
    tensors.append(helper.make_tensor("scales", 1, [2], [1.0, 1e9]))
    nodes = [helper.make_node(op, read, [f"_{i}"], **options) for i, (op, read, options) in enumerate(BOMBS[name])]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])
    y = helper.make_tensor_value_info(f"_{len(nodes) - 1}", TensorProto.FLOAT, None)
    used = {each for node in nodes for each in node.input}
    graph = helper.make_graph(nodes, "graph", [x], [y], [tensor for tensor in tensors if tensor.name in used])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    with pytest.raises(OnnxError, match=r"constant of .* bytes|too large|cannot be computed: Attempting to broadcast"):
        import_model(model, NOWHERE, {})


def test_names_are_text(exported: Callable[[str], Exported]) -> None:
    raw = exported("cnn").raw.replace(b"MaxPool", b"Max\xffool")
    with pytest.raises(OnnxError, match="a name in it is not UTF-8"):
        read_bytes(raw)


def test_large_files_and_graphs_are_refused(
    tmp_path: Path, exported: Callable[[str], Exported], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(exported("cnn").raw)
    monkeypatch.setattr(read, "MOST_NODES", 3)
    with pytest.raises(OnnxError, match=r"model\.onnx: the graph has more than 3 nodes"):
        read_model(path)
    monkeypatch.setattr(read, "MOST_BYTES", 10)
    with pytest.raises(OnnxError, match="more than 10 bytes"):
        read_model(path)


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ({}, r"only a name: N \(input0, dimension 0\).*--dim N=8"),
        ({"N": 2, "M": 3}, "no size named M; there are"),
        ({"N": 0}, "from 1 on"),
        ({"N": 2**40}, "larger than"),
    ],
)
def test_sizes_are_named(
    dims: dict[str, int], message: str, tmp_path: Path, exported: Callable[[str], Exported]
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(exported("cnn").raw)
    with pytest.raises(OnnxError, match=message):
        read_model(path, dims)


def test_a_file_that_was_stripped_of_its_weights_is_planned_with_others(
    tmp_path: Path, exported: Callable[[str], Exported]
) -> None:
    proto, path = exported("cnn").proto, tmp_path / "model.onnx"
    for weight in proto.graph.initializer:
        proto.graph.input.append(helper.make_tensor_value_info(weight.name, weight.data_type, list(weight.dims)))
    del proto.graph.initializer[:]
    path.write_bytes(proto.SerializeToString())
    found = read_model(path, {"N": 2})
    assert {n: p.shape for n, p in found.module.named_parameters()} == {
        n: p.shape for n, p in exported("cnn").model.named_parameters()
    }
    assert list(found.example_inputs) == ["input0"] and any("made at random" in line for line in found.notes)
    assert torch.isfinite(found.module(*found.example_inputs.values())[0]).all()


def test_a_shape_that_depends_on_data_is_refused_with_its_node() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])
    n = helper.make_tensor_value_info("n", TensorProto.INT64, [2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 2])
    graph = helper.make_graph([helper.make_node("Reshape", ["x", "n"], ["y"], name="turn")], "graph", [x, n], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    with pytest.raises(OnnxError, match=r"Reshape node 'turn': its shape depends on what the model's inputs hold"):
        import_model(onnx.load_model_from_string(model.SerializeToString()), NOWHERE, {})

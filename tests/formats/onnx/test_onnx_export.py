"""ONNX out: the forward as it is, with the plan on its nodes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from graphopt.api.optimize import plan_model
from graphopt.base.errors import CaptureError
from graphopt.cli import cli
from graphopt.formats.onnx.export import (
    BYTES,
    KEPT,
    OFFLOADED,
    RECOMPUTED,
    SECONDS,
    OpNote,
    export_model,
    note_nodes,
    notes_of,
)
from graphopt.formats.onnx.model import read_model
from graphopt.kernels.offload.link import DepotLink
from graphopt.plan.offload import where
from tests.formats.onnx.test_onnx_commands import TRAIN
from tests.support.onnx_models import MODELS

SCOPES, TRACE = "pkg.torch.onnx.name_scopes", "pkg.torch.onnx.stack_trace"


def told(node: onnx.NodeProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in node.metadata_props}


def test_notes_find_their_nodes_and_add_up() -> None:
    proto = onnx.ModelProto()
    for scopes, line in (("['', 'one', 'linear']", 3), ("['', 'one', 'linear']", 3), ("['', 'add']", 7)):
        node = proto.graph.node.add(op_type="Add")
        node.metadata_props.add(key=SCOPES, value=scopes)
        node.metadata_props.add(key=TRACE, value=f'File "/a/b/train.py", line {line}, in forward\n  code')
    notes = [
        OpNote(("one", "/a/b/train.py:3 in forward"), True, 0, False, 10, 1.0),
        OpNote(("one", "/a/b/train.py:3 in forward"), False, 1, True, 20, 2.0),
        OpNote(("one", "/a/b/train.py:3 in forward"), False, 2, False, 30, 4.0),
        OpNote(("", "/a/b/train.py:7 in forward"), False, 0, False, 5, 8.0),
        OpNote(("elsewhere", "other.py:1 in forward"), False, 0, False, 5, 8.0),
    ]
    assert note_nodes(proto, notes) == 3
    found = [told(node) for node in proto.graph.node]
    assert [each[BYTES] for each in found] == ["30", "30", "5"]
    assert [each[RECOMPUTED] for each in found] == ["1", "2", "0"]
    assert [each[KEPT] for each in found] == ["true", "false", "false"]
    assert [each[OFFLOADED] for each in found] == ["true", "false", "false"]
    assert [float(each[SECONDS]) for each in found] == [3.0, 4.0, 8.0]


def test_a_file_has_the_plan_and_computes_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxscript")
    train, path = tmp_path / "train_onnx.py", tmp_path / "out.onnx"
    train.write_text(TRAIN)
    words = ("--onnx", str(path), "--mem-budget", "1MiB", "--cost-model", "roofline", "--json")
    assert cli.main(["export", f"{train}:build", *words]) == 0
    data = json.loads(capsys.readouterr().out)
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    assert data["noted_nodes"] == data["nodes"] == len(proto.graph.node)
    assert {entry.key: entry.value for entry in proto.metadata_props}["graphopt.peak_bytes"] == str(data["peak_bytes"])
    namespace: dict[str, object] = {}
    exec(TRAIN, namespace)
    model, (x, _), loss = namespace["build"]()  # type: ignore[operator]
    planned = plan_model(model, (x, x), loss, mem_budget="1MiB", cost_model="roofline").planned_graphs
    forward = [note for note in notes_of(planned) if note.where[0]]
    assert sum(int(told(node)[BYTES]) for node in proto.graph.node) == sum(note.bytes for note in forward)
    got = read_model(path).module.eval()(x)[0]
    torch.testing.assert_close(got, model(x), rtol=1e-5, atol=1e-5)


def test_what_is_moved_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(where, "measure_link", lambda *_: DepotLink(1e11, 1e11, 1e-7))
    torch.manual_seed(0)
    layers = [m for _ in range(5) for m in (nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 32))]
    model, x = nn.Sequential(*layers), torch.randn(256, 32)
    given = {"mem_budget": "1.4MiB", "offload": tmp_path, "cost_model": "roofline"}
    plan = plan_model(model, (x, x), nn.functional.mse_loss, **given)
    notes = notes_of(plan.planned_graphs)
    assert any(note.offloaded for note in notes), "nothing is moved"
    fetched = {name.removesuffix("_fetched") for name in plan.planned_graphs[0].plan.fetched}
    assert sum(note.offloaded for note in notes) == len(fetched)
    assert not any(note.kept for note in notes if note.offloaded)
    assert all(note.bytes for note in notes)
    export_model(model, x, tmp_path / "out.onnx", plan.planned_graphs)
    told_of = [told(node) for node in onnx.load(tmp_path / "out.onnx").graph.node]
    assert sum(each.get(OFFLOADED) == "true" for each in told_of) == len(fetched)
    assert sum(int(each.get(BYTES, 0)) for each in told_of) == sum(n.bytes for n in notes if n.where[0])


@pytest.mark.fast(1)
@pytest.mark.parametrize("name", ["cnn", "gpt2", "unet", "lstm"])
def test_files_compute_the_same_under_onnxruntime(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    export_model(model, inputs, tmp_path / "model.onnx")
    assert model.training
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    session = runtime.InferenceSession(tmp_path / "model.onnx", options)
    feeds = {each.name: value.numpy() for each, value in zip(session.get_inputs(), inputs, strict=True)}
    with torch.no_grad():
        wanted = model.eval()(*inputs).numpy()
    np.testing.assert_allclose(session.run(None, feeds)[0], wanted, rtol=1e-4, atol=1e-4)


def test_what_torch_cannot_export_is_said(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")

    class Branches(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(CaptureError, match="torch cannot export Branches to ONNX"):
        export_model(Branches(), torch.randn(2), tmp_path / "model.onnx")

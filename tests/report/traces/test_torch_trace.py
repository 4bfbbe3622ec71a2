"""Plans in PyTorch's log of compilations, and nothing of them where none is kept."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from graphopt.report.traces.torch_trace import log_to_torch_trace

PROGRAM = """
import torch
from torch import nn
import graphopt

x = torch.randn(8, 4)
model, other = nn.Sequential(nn.Linear(4, 4), nn.Tanh()), nn.Linear(4, 4)
graphopt.optimize(model, "1GiB", cost_model="roofline")(x).sum().backward()
optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
graphopt.train_step(other, nn.functional.mse_loss, optimizer, "1GiB", cost_model="roofline")(x, x)
"""


def artifacts(folder: Path) -> list[tuple[dict[str, Any], str]]:
    """The metadata and the payload of each artifact of ours: a log has a line for each, and payloads indented below."""
    (log,) = folder.iterdir()
    found: list[tuple[dict[str, Any], str]] = []
    ours = False
    for line in log.read_text().splitlines():
        if line.startswith("\t"):
            if ours:
                found[-1] = found[-1][0], found[-1][1] + line[1:] + "\n"
            continue
        metadata = json.loads(line[line.index("{") :])
        ours = metadata.get("artifact", {}).get("name", "").startswith("graphopt_")
        if ours:
            found.append((metadata, ""))
    return found


def test_plans_are_in_the_log(tmp_path: Path) -> None:
    surroundings = os.environ | {"TORCH_TRACE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=surroundings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = artifacts(tmp_path)
    names = ["graphopt_report", "graphopt_plan", "graphopt_timeline"]
    assert [metadata["artifact"]["name"] for metadata, _ in found] == 2 * names
    assert [metadata["artifact"]["encoding"] for metadata, _ in found] == 2 * ["string", "json", "json"]
    assert all("frame_id" in metadata for metadata, _ in found[:3]), "it belongs to the compilation that it is made in"
    (_, text), (_, plan), (_, timeline) = found[:3]
    assert "Sequential on cpu" in text and "FITS" in text
    kept, events = json.loads(plan), json.loads(timeline)["traceEvents"]
    assert kept["model"] == "Sequential"
    assert max(e["args"]["bytes"] for e in events if e["ph"] == "C") == kept["peak_bytes"]


def test_without_a_log_nothing_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    log, asked = logging.getLogger("torch.__trace"), list[str]()
    monkeypatch.setattr(log, "handlers", [])  # as Dynamo leaves it, unless TORCH_TRACE is set

    def ask() -> Any:
        asked.append("asked")

    log_to_torch_trace(ask, ask)
    assert not asked

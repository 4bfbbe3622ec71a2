"""The command line: its exit codes, what goes where, and how quickly it answers."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import networkx as nx
import pytest

import graphopt
from graphopt.base.errors import BudgetError, CaptureError, GraphoptError, VerificationError
from graphopt.cli import cli
from graphopt.planners import PLANNERS
from graphopt.problem.problem import Op, Problem, Value, save_problem
from tests.support.plans import make_plan, make_report

BUILD = """
import torch
from torch import nn
print("a user's own words")

def build():
    torch.manual_seed(0)
    layers = [m for _ in range(4) for m in (nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))]
    return nn.Sequential(*layers), (torch.randn(64, 32), torch.randn(64, 32)), nn.functional.mse_loss

def no_loss():
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.randn(2, 4)

def by_name():
    return nn.Linear(4, 4), {"input": torch.randn(2, 4)}

def one():
    return nn.Linear(4, 4)

def five():
    return 1, 2, 3, 4, 5

def no_optimizer():
    return nn.Linear(4, 4), torch.randn(2, 4), None, 7

def no_model():
    return "model", torch.randn(2)

def no_inputs():
    return nn.Linear(4, 4), 7

def no_function():
    return nn.Linear(4, 4), torch.randn(2, 4), 7

def broken():
    raise KeyError("which")

class Pieces(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x):
        return self.two(self.outside(self.one(x)))

    @torch._dynamo.disable
    def outside(self, x):
        return x.repeat(1, 64).sin().reshape(64, 64, 32).sum(1)

def in_pieces():
    return Pieces(), (torch.randn(64, 32), torch.randn(64, 32)), nn.functional.mse_loss
"""


@pytest.fixture
def train(tmp_path: Path) -> Path:
    path = tmp_path / "train_it.py"
    path.write_text(BUILD)
    return path


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """Six forward ops and six backward ones that read their outputs."""
    forward = [Op(f"f{i}", 1.0, 0, (i - 1,) if i else (), (i,)) for i in range(6)]
    backward = [Op(f"b{k}", 2.0, 0, (5 - k, 5 + k) if k else (5,), (6 + k,), True) for k in range(6)]
    path = tmp_path / "problem.json"
    save_problem(Problem(tuple(Value(100) for _ in range(12)), (*forward, *backward), (11,)), path)
    return path


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = cli.main([str(word) for word in words])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_help_is_quick_and_loads_no_torch() -> None:
    code = "import sys; from graphopt.cli.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    before = os.times()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    after = os.times()
    assert done.returncode == 0 and "verify" in done.stdout
    # the child's own CPU seconds: the machine may be busy with other tests
    assert after.children_user + after.children_system - before.children_user - before.children_system < 0.5


def test_alone_it_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    alone = run(capsys)
    assert alone == run(capsys, "--help") and alone[0] == 0 and "sweep" in alone[1]
    assert run(capsys, "--json")[0] == 2  # a program that asks for nothing is wrong


def test_the_version_needs_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version") == (0, f"graphopt {graphopt.__version__}\n", "")


def test_help_names_every_planner(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "solve", "--help")
    assert code == 0
    assert {*cli.PLANNER_NAMES, "auto"} == set(PLANNERS) and all(name in out for name in PLANNERS)


def test_solve_needs_no_torch(chain: Path) -> None:
    code = f"import sys; from graphopt.cli.cli import main; main(['solve', {str(chain)!r}, '--mem-budget', '1000']); "
    done = subprocess.run([sys.executable, "-c", code + "sys.exit('torch' in sys.modules)"], capture_output=True)
    assert done.returncode == 0


KEYS = {
    "feasible", "planner", "peak_bytes", "seconds", "overhead", "lower_bound_seconds", "proven_optimal",
    "minimum_bytes", "schedule",
}  # fmt: skip


def test_solve_with_room_recomputes_nothing_and_proves_it(chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "solve", chain, "--mem-budget", "10KB", "--json")
    data = json.loads(out)
    assert (code, err, set(data)) == (0, "", KEYS)
    assert data["feasible"] and data["proven_optimal"] and data["overhead"] == 0
    assert data["seconds"] == data["lower_bound_seconds"] == 18
    assert sorted(data["schedule"]) == list(range(12))


def test_solve_with_less_room(chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "solve", chain, "--mem-budget", "350", "--json")
    data = json.loads(out)
    assert code == 0 and data["feasible"] and not data["proven_optimal"]
    assert data["minimum_bytes"] <= data["peak_bytes"] <= 350
    assert data["seconds"] > data["lower_bound_seconds"] > 18 and data["overhead"] > 0
    text = run(capsys, "solve", chain, "--mem-budget", "350")[1]
    assert "ops run again" in text and "above the optimum" in text


def test_solve_that_recomputes_and_proves_that_it_must(chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "solve", chain, "--mem-budget", "500", "--json")
    data = json.loads(out)
    assert code == 0 and data["proven_optimal"] and data["overhead"] > 0
    assert data["seconds"] == pytest.approx(data["lower_bound_seconds"], rel=1e-9)
    assert "(proven optimal)" in run(capsys, "solve", chain, "--mem-budget", "500")[1]


def test_solve_may_look_for_longer(chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("solve", chain, "--mem-budget", "600", "--planner", "sqrt_n", "--json")
    at_once = json.loads(run(capsys, *words)[1])
    longer = json.loads(run(capsys, *words, "--plan-seconds", "0.1")[1])
    assert longer["peak_bytes"] <= 600 and longer["proven_optimal"]
    assert longer["lower_bound_seconds"] == at_once["lower_bound_seconds"] < longer["seconds"] * (1 + 1e-9)
    assert longer["seconds"] <= at_once["seconds"]


@pytest.mark.parametrize("ending", ["graphml", "dot"])
def test_solve_may_write_its_graph(
    ending: str, chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"graph.{ending}"
    code, out, _ = run(capsys, "solve", chain, "--mem-budget", "300", "--json", "--graph", path)
    steps = json.loads(out)["schedule"]
    again = {f"op{op}" for op in steps if steps.count(op) > 1}
    assert code == 0 and again
    if ending == "dot":
        assert path.read_text().startswith("digraph") and path.read_text().count("dashed") >= len(again)
        return
    graph = nx.read_graphml(path)
    assert {name for name, data in graph.nodes.items() if data["kind"] == "op" and data["recomputed"]} == again


def test_networkx_is_loaded_only_for_a_graph(chain: Path) -> None:
    code = f"import sys; from graphopt.cli.cli import main; main(['solve', {str(chain)!r}, '--mem-budget', '1000']); "
    done = subprocess.run([sys.executable, "-c", code + "sys.exit('networkx' in sys.modules)"], capture_output=True)
    assert done.returncode == 0


def test_solve_that_cannot(chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "solve", chain, "--mem-budget", "99", "--json")
    data = json.loads(out)
    assert code == 3 and set(data) == KEYS and not data["feasible"] and data["schedule"] is None
    assert data["lower_bound_seconds"] is None and not data["proven_optimal"]
    assert data["minimum_bytes"] > 99 and f"{data['minimum_bytes']:,}" in err
    at_least = run(capsys, "solve", chain, "--mem-budget", data["minimum_bytes"], "--json")
    assert at_least[0] == 0 and json.loads(at_least[1])["minimum_bytes"] == data["minimum_bytes"]
    code, out, err = run(capsys, "solve", chain, "--mem-budget", "99")
    assert (code, out) == (3, "") and "no schedule fits in 99 bytes" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fi"], "invalid choice: 'fi'"),
        (["fit", "{train}:build"], "--mem-budget"),
        (["fit", "{train}:build", "--mem-budget", "8G"], "8GiB"),
        (["fit", "{train}:build", "--mem-budget", "8GiB", "--optimizer", "lion"], "invalid choice: 'lion'"),
        (["solve", "{chain}"], "--mem-budget"),
        (["solve", "{chain}", "--mem-budget", "8G"], "8GiB"),
        (["solve", "{chain}", "--mem-budget", "80%"], "share of the device"),
        (["solve", "{chain}", "--mem-budget", "8", "--plan-seconds", "inf"], "expected a number of seconds"),
        (["solve", "{chain}", "--mem-budget", "8", "--planner", "magic"], "there are: none, sqrt_n"),
        (["solve", "{train}", "--mem-budget", "8GiB"], "not a readable JSON"),
        (["solve", "nowhere.json", "--mem-budget", "8GiB"], "nowhere.json"),
        (["solve", "nowhere.json", "--mem-budget", "8GiB", "--graph", "a.png"], "written as .graphml or .dot"),
        (["plan", "nowhere.py:build", "--mem-budget", "8GiB", "--graph", "a"], "written as .graphml or .dot"),
        (["plan", "{train}:build"], "name a budget"),
        (["plan", "{train}:build", "--mem-budget", "-5MiB"], "budget"),
        (["plan", "{train}:build", "--plan", "nowhere.json"], "cannot read nowhere.json"),
        (["plan", "{train}", "--mem-budget", "8GiB"], "names no function|no file"),
        (["plan", "nowhere.py:build", "--mem-budget", "8GiB"], "there is no file 'nowhere.py'"),
        (["plan", "no_such.package:build", "--mem-budget", "8GiB"], "module 'no_such.package' cannot be imported"),
        (["plan", "{train}:built", "--mem-budget", "8GiB"], "no function 'built'; it has: build"),
        (["plan", "{train}:one", "--mem-budget", "8GiB"], "returned a Linear; it must return"),
        (["plan", "{train}:five", "--mem-budget", "8GiB"], "returned a tuple of 5"),
        (["plan", "{train}:no_optimizer", "--mem-budget", "8GiB"], "the optimizer is a int"),
        (["plan", "{train}:no_model", "--mem-budget", "8GiB"], "the model is a str"),
        (["plan", "{train}:no_inputs", "--mem-budget", "8GiB"], "example_inputs is a int"),
        (["plan", "{train}:no_function", "--mem-budget", "8GiB"], "loss_fn is a int"),
        (["plan", "{train}:broken", "--mem-budget", "8GiB"], "raised KeyError: 'which'"),
        (["plan", "{train}:build", "--mem-budget", "8GiB", "--device", "nonsense"], "device 'nonsense' cannot be used"),
        (["demo", "--steps", "1"], "at least 2"),
    ],
)
def test_usage_errors_name_what_is_wrong(
    words: list[str], message: str, chain: Path, train: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.format(chain=chain, train=train) for word in words]
    code, out, err = run(capsys, *words)
    assert (code, out.replace("a user's own words\n", "")) == (2, "")
    assert any(part in err for part in message.split("|")), err
    assert "Traceback" not in err
    code, out, err = run(capsys, *words, "--json")
    error = json.loads(out)["error"]
    assert code == error["exit_code"] == 2 and error["type"].endswith("Error")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BudgetError("too small", 77, ("weights",)), 3),
        (VerificationError("differs", "lm_head.weight", 0.5), 4),
        (CaptureError("cannot"), 5),
        (GraphoptError("odd"), 1),
        (ZeroDivisionError("by zero"), 1),
    ],
)
def test_errors_of_the_work(
    error: Exception, code: int, train: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("graphopt.api.verify.verify_model", fail)
    words = ("verify", f"{train}:no_loss", "--mem-budget", "8GiB")
    got, out, err = run(capsys, *words, "--json")
    details = json.loads(out)["error"]
    assert got == code == details["exit_code"] and str(error) in err and "Traceback" not in err
    assert details.get("minimum_bytes") == getattr(error, "minimum_bytes", None)
    assert "Traceback" in run(capsys, *words, "--traceback")[2]
    monkeypatch.setenv("GRAPHOPT_DEBUG", "1")
    assert "Traceback" in run(capsys, *words)[2]


def test_a_tampered_plan_is_a_mismatch(train: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plan.json"
    make_plan().save(path)
    path.write_text(path.read_text().replace("GPT2", "GPT3"))
    code, _, err = run(capsys, "plan", f"{train}:build", "--plan", path)
    assert code == 6 and "checksum" in err


def test_a_plan_of_another_model_is_a_mismatch(train: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_plan().save(tmp_path / "plan.json")
    code, _, err = run(capsys, "plan", f"{train}:build", "--plan", tmp_path / "plan.json", "--cost-model", "roofline")
    assert code == 6, err


def test_what_is_asked_for_reaches_the_api(
    train: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    class Fake:
        report = make_report(measured=False)

    def plan_model(model: Any, inputs: Any, loss: Any, **keywords: Any) -> Fake:
        asked.update(keywords, model=type(model).__name__, inputs=len(inputs), loss=loss.__name__)
        return Fake()

    monkeypatch.setattr("graphopt.api.optimize.plan_model", plan_model)
    options = ("--mem-budget", "8MiB", "--planner", "chain", "--cost-model", "roofline", "--reserve", "1KiB")
    options += ("--plan-seconds", "2.5", "--compiler", "inductor")
    saved, page = tmp_path / "saved.json", tmp_path / "report.html"
    code, out, _ = run(capsys, "plan", f"{train}:build", *options, "--save-plan", saved, "--html", page)
    assert code == 0 and "FITS" in out and page.read_text().startswith("<!doctype html>")
    assert json.loads(saved.read_text())["schema"] == "graphopt.plan/7"
    assert asked == {
        "mem_budget": "8MiB", "planner": "chain", "cost_model": "roofline", "reserve": "1KiB", "plan": None,
        "plan_seconds": 2.5, "compiler": "inductor", "dynamic": None, "numerics": "bitwise", "offload": None,
        "model": "Sequential", "inputs": 2, "loss": "mse_loss",
    }  # fmt: skip


def test_plan_verify_and_sweep_of_a_real_model(train: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = f"{train}:build"
    code, out, err = run(capsys, "sweep", target, "--json", "--html", tmp_path / "curve.html")
    assert code == 0, err
    curve = json.loads(out)
    assert curve["points"][0]["peak_bytes"] == curve["minimum_bytes"] < curve["eager_peak_bytes"]
    assert "<svg" in (tmp_path / "curve.html").read_text()
    assert "extra time" in run(capsys, "sweep", target)[1]

    budget = (curve["minimum_bytes"] + curve["eager_peak_bytes"]) // 2
    plan = tmp_path / "plan.json"
    words = ("--mem-budget", budget, "--save-plan", plan, "--json", "--graph", tmp_path / "graph.graphml")
    words += ("--trace", tmp_path / "trace.json", "--snapshot", tmp_path / "snapshot.pickle")
    code, out, err = run(capsys, "plan", target, *words)
    report = json.loads(out)
    assert {"loading PyTorch", "building the model", "capturing", "planning", "reporting"} <= set(report["phases"])
    assert all(seconds >= 0 for seconds in report["phases"].values())
    trace = json.loads((tmp_path / "trace.json").read_text())
    assert trace["otherData"]["peak_bytes"] == report["plan"]["peak_bytes"]
    assert pickle.loads((tmp_path / "snapshot.pickle").read_bytes())["device_traces"][0]
    ops = [data for data in nx.read_graphml(tmp_path / "graph.graphml").nodes.values() if data["kind"] == "op"]
    again = [name for data in ops for name in [data["name"]] * (len(data["steps"].split()) - 1)]
    assert sorted(again) == sorted(report["plan"]["graphs"][0]["recomputed"])
    assert code == 0 and report["fits"] and report["plan"]["peak_bytes"] <= budget, err
    assert "a user's own words" not in out

    code, out, err = run(capsys, "verify", target, "--plan", plan)
    assert code == 0 and "VERIFIED" in out, err
    code, _, err = run(capsys, "plan", target, "--mem-budget", "1KiB")
    assert code == 3 and "at least" in err


@pytest.mark.parametrize("function", ["no_loss", "by_name"])
def test_targets_without_a_loss(function: str, train: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "plan", f"{train}:{function}", "--mem-budget", "1GiB", "--cost-model", "roofline")
    assert code == 0, err


def test_a_module_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "some_package_of_mine.py").write_text(BUILD)
    monkeypatch.chdir(tmp_path)
    words = ("some_package_of_mine:no_loss", "--mem-budget", "1GiB", "--cost-model", "roofline")
    code, _, err = run(capsys, "plan", *words)
    assert code == 0, err


def test_a_plan_of_a_model_in_pieces_says_what_is_outside(
    train: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("plan", f"{train}:in_pieces", "--mem-budget", "1MiB", "--cost-model", "roofline")
    code, out, _ = run(capsys, *words, "--html", tmp_path / "report.html")
    assert code == 0 and "FITS AS FAR AS IT IS CAPTURED" in out and "outside of the plan" in out
    assert "Where captures ended" in out and "train_it.py:" in out
    page = (tmp_path / "report.html").read_text()
    assert "Where captures ended" in page and "outside of the plan" in page
    _, out, _ = run(capsys, *words, "--json")
    data = json.loads(out)
    assert 0 < data["outside"]["seconds_share"] < 1 and data["outside"]["steps"] == 0
    # twice 64 x 2048 numbers, before and behind the sine
    assert 2 * 64 * 2048 * 4 <= data["outside"]["bytes"] <= data["outside"]["peak_bytes"]
    (found,) = data["breaks"][:1]
    assert "disable" in found["reason"] and "train_it.py:" in found["source"]
    code, out, _ = run(capsys, "verify", *words[1:], "--mem-budget", "4MiB")
    assert code == 0 and "outside of the plan" in out

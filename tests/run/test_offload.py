"""Models that move values to a file, in loops as people write them: bits, bytes, and faults."""

from __future__ import annotations

import copy
import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphopt
from graphopt.base.errors import OffloadError
from graphopt.device.measure import peak_bytes
from graphopt.kernels.offload import ops
from graphopt.kernels.offload.file_depot import FileDepot
from graphopt.kernels.offload.link import DepotLink
from graphopt.plan.offload import where

ROWS, WIDTH = 512, 128


class Blocks(nn.Module):
    """Residual blocks, with dropout, whose products are dear to make again."""

    def __init__(self, count: int = 5, p: float = 0.1) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self._block(p) for _ in range(count))

    def _block(self, p: float) -> nn.Module:
        wide = nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        return nn.Sequential(nn.LayerNorm(WIDTH), *wide, nn.Dropout(p))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x.square().mean()


def bounds(model: nn.Module, x: Tensor, **options: Any) -> tuple[int, int]:
    """The least budget without moving anything, and eager's peak."""
    with pytest.raises(graphopt.BudgetError) as error:
        graphopt.optimize(copy.deepcopy(model), "1B", example_inputs=x, **options)
    roomy = graphopt.optimize(copy.deepcopy(model), "1GiB", example_inputs=x, **options)
    return error.value.minimum_bytes, roomy.graphopt.plan.eager_peak_bytes  # type: ignore[union-attr]


def moved(model: nn.Module, budget: int, x: Tensor, folder: Path, **options: Any) -> nn.Module:
    """The model inside a budget, moving what roofline says is dear to make again."""
    found = graphopt.optimize(model, budget, example_inputs=x, offload=folder, **options)
    assert found.graphopt.plan.fetched, "nothing is moved"  # type: ignore[union-attr]
    return found


def step_of(model: nn.Module, run: Callable[[nn.Module], Tensor]) -> list[Tensor]:
    torch.manual_seed(3)
    loss = run(model)
    loss.backward()
    found = [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None), torch.get_rng_state()]
    return [each.clone() for each in found]


@pytest.fixture(autouse=True)
def fast_link(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans as for a fast disk, whatever the machine's load: moving is then always worth it."""
    real = where.measure_link

    def measured(*args: Any) -> Any:
        link = real(*args)
        assert link.read_bytes_per_second > 0
        return type(link)(1e11, 1e11, 1e-7)

    monkeypatch.setattr(where, "measure_link", measured)


LOOPS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "plain": lambda model, x: model(x),
    "two forwards": lambda model, x: model(x) + model(x * 0.5),
    "autocast": lambda model, x: _in_bfloat16(model, x),
    "eval in between": lambda model, x: _looked_at(model, x),
}


def _in_bfloat16(model: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return model(x)  # type: ignore[no-any-return]


def _looked_at(model: nn.Module, x: Tensor) -> Tensor:
    loss = model(x)
    model.eval()
    with torch.no_grad():
        model(x[:7])
    model.train()
    return loss  # type: ignore[no-any-return]


@pytest.mark.fast(1)
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("share", [0.0, 0.4])
def test_bits_and_bytes(loop: str, share: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    eager, x = Blocks(), torch.randn(ROWS, WIDTH)
    least, most = bounds(eager, x)
    budget = int(least + share * (most - least)) * (2 if loop == "two forwards" else 1)
    model = copy.deepcopy(eager)
    graphopt.optimize(model, budget, offload=tmp_path)
    expected = step_of(eager, lambda m: LOOPS[loop](m, x))
    for _ in range(3):
        model.zero_grad()
        assert all(map(torch.equal, step_of(model, lambda m: LOOPS[loop](m, x)), expected))
    there = [*model.parameters(), x]
    model.zero_grad()
    torch.manual_seed(3)
    measured = peak_bytes(lambda: LOOPS[loop](model, x).backward(), there, "cpu")
    assert measured <= budget
    assert model.graphopt.history[-1].measured_bytes <= budget  # type: ignore[union-attr]
    if loop == "plain":
        assert model.graphopt.plan.fetched  # type: ignore[union-attr]


def test_nothing_is_made_again_that_is_faster_to_fetch_and_both_are_said(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Blocks(), torch.randn(ROWS, WIDTH)
    least, _ = bounds(model, x)
    plain = graphopt.optimize(copy.deepcopy(model), least, example_inputs=x)
    found = moved(model, least, x, tmp_path)
    plan, without = found.graphopt.plan, plain.graphopt.plan  # type: ignore[union-attr]
    assert plan.overhead < without.overhead
    assert plan.moved_bytes > 0 and without.moved_bytes == 0
    text = str(found.graphopt.report)  # type: ignore[union-attr]
    assert f"{len(plan.fetched)} values are fetched" in text


def test_less_than_the_least_without_fits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Blocks(), torch.randn(ROWS, WIDTH)
    least, _ = bounds(model, x)
    smallest, _ = bounds(model, x, offload=tmp_path)
    assert smallest <= least


def test_forwards_without_a_backward_leave_nothing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Blocks(), torch.randn(ROWS, WIDTH)
    least, _ = bounds(model, x)
    found = moved(model, least, x, tmp_path)
    depot = ops.file_depot(tmp_path)[1]
    assert isinstance(depot, FileDepot)
    for _ in range(5):
        found(x)
    assert len(depot.tokens) == 0
    loss = found(x)
    assert len(depot.tokens) > 0
    loss.backward()
    del loss
    assert len(depot.tokens) == 0


def test_gradients_that_stay(tmp_path: Path) -> None:
    torch.manual_seed(0)
    eager, x = Blocks(p=0.0), torch.randn(ROWS, WIDTH)
    least, most = bounds(eager, x)
    model = copy.deepcopy(eager)
    graphopt.optimize(model, int(least + 0.4 * (most - least)), offload=tmp_path)
    for _ in range(2):
        for part in (x, x * 0.5, x + 1):
            model(part).backward()
            eager(part).backward()
        for mine, own in zip(model.parameters(), eager.parameters(), strict=True):
            assert mine.grad is not None and own.grad is not None
            assert torch.equal(mine.grad, own.grad)


@pytest.mark.slow
def test_a_kept_plan_moves_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Blocks(), torch.randn(ROWS, WIDTH)
    least, _ = bounds(model, x)
    first = moved(copy.deepcopy(model), least, x, tmp_path)
    file = tmp_path / "plan.json"
    first.graphopt.plan.save(file)  # type: ignore[union-attr]
    second = graphopt.optimize(copy.deepcopy(model), plan=file, example_inputs=x, offload=tmp_path)
    plan = second.graphopt.plan  # type: ignore[union-attr]
    assert plan.graphs[0].schedule == first.graphopt.plan.graphs[0].schedule  # type: ignore[union-attr]
    assert plan.fetched == first.graphopt.plan.fetched  # type: ignore[union-attr]
    ran = [step_of(each, lambda m: m(x)) for each in (first, second)]
    assert all(map(torch.equal, *ran))
    with pytest.raises(graphopt.PlanMismatchError, match="offload="):
        graphopt.optimize(copy.deepcopy(model), plan=file, example_inputs=x)


@pytest.mark.fast(1)
@pytest.mark.parametrize("accumulate", [1, 3])
def test_training_steps(accumulate: int, tmp_path: Path) -> None:
    def built(**options: Any) -> tuple[nn.Module, Any]:
        torch.manual_seed(0)
        model = Blocks()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        clip = graphopt.ClipNorm(1.0)
        return model, graphopt.train_step(model, None, optimizer, accumulate=accumulate, clip=clip, **options)

    x = torch.randn(ROWS * accumulate, WIDTH)
    eager, roomy = built()
    torch.manual_seed(1)
    losses = [float(roomy(x).loss) for _ in range(3)]
    budget = roomy.plan.minimum_bytes
    model, step = built(mem_budget=budget, offload=tmp_path)
    torch.manual_seed(1)
    assert [float(step(x).loss) for _ in range(3)] == losses
    assert all(map(torch.equal, model.parameters(), eager.parameters()))
    assert step.plan.fetched
    assert all(each.measured_bytes <= budget for each in step.history)


FAULTS = ("no space", "broken", "cut", "short")


def test_faults_at_any_transfer_change_nothing(tmp_path: Path) -> None:
    """Every transfer of a step fails once in each way; the step after it is as if nothing had been."""
    torch.manual_seed(0)
    eager, x = Blocks(2), torch.randn(ROWS, WIDTH)
    least, _ = bounds(eager, x)
    model = moved(copy.deepcopy(eager), least, x, tmp_path)
    depot = ops.file_depot(tmp_path)[1]
    assert isinstance(depot, FileDepot)
    expected = step_of(eager, lambda m: m(x))
    model.zero_grad()
    step_of(model, lambda m: m(x))
    parameters = [p.detach().clone() for p in model.parameters()]
    transfers = 2 * len(model.graphopt.plan.fetched)  # type: ignore[union-attr]
    raised = 0
    for fault in FAULTS:
        for after in range(transfers):
            model.zero_grad()
            depot.lane.fails(fault, after)
            try:
                found = step_of(model, lambda m: m(x))
            except OffloadError:
                raised += 1
                assert all(p.grad is None for p in model.parameters())
            else:
                assert all(map(torch.equal, found, expected))
            assert all(map(torch.equal, model.parameters(), parameters))
            model.zero_grad()
            assert all(map(torch.equal, step_of(model, lambda m: m(x)), expected))
    assert raised >= 2 * transfers
    assert not ops._ARRIVING


def test_a_link_that_is_too_slow_is_said_and_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(where, "measure_link", lambda *_: DepotLink(1e4, 1e4, 1e-3))
    torch.manual_seed(0)
    model, x = Blocks(), torch.randn(ROWS, WIDTH)
    least, most = bounds(model, x)
    with caplog.at_level(logging.INFO, logger="graphopt"):
        graphopt.optimize(model, (least + most) // 2, example_inputs=x, offload=tmp_path)
    assert not model.graphopt.plan.fetched  # type: ignore[union-attr]
    assert "nothing is moved" in caplog.text and "9.8 KiB a second" in caplog.text


def test_what_cannot_be(tmp_path: Path) -> None:
    model, x = Blocks(1), torch.randn(ROWS, WIDTH)
    for options, what in (
        ({"offload": "host"}, "the model is on cpu"),
        ({"offload": tmp_path / "nowhere"}, "is no folder"),
        ({"offload": ""}, "is no folder"),
        ({"offload": 3}, "expected 'host', 'file' or a folder"),
        ({"offload": tmp_path, "dynamic": True}, "does not go with dynamic="),
        ({"offload": tmp_path, "compiler": "inductor"}, "does not go with compiler='inductor'"),
    ):
        with pytest.raises(graphopt.UsageError, match=what):
            graphopt.optimize(model, "1GiB", example_inputs=x, **options)


class WithOutput(nn.Module):
    """Dropout, and an output beside the loss, whose gradient may come or not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            *[nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Dropout(0.1), nn.Linear(256, 64)) for _ in range(4)]
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.body(x)
        return y.square().mean(), y


def test_gradients_of_outputs_that_were_not_planned_for(tmp_path: Path) -> None:
    """The backward for all of them fetches what the forward moved for the one that is expected."""
    eager, x = WithOutput(), torch.randn(256, 64)
    least, _ = bounds(eager, x)
    model = moved(copy.deepcopy(eager), int(1.2 * least), x, tmp_path)
    losses: list[Callable[[nn.Module], Tensor]] = [
        lambda m: m(x)[0],
        lambda m: sum(each.sum() for each in m(x)),  # type: ignore[arg-type]
        lambda m: m(x)[1].square().sum(),
        lambda m: m(x)[0],
    ]
    for loss in losses:
        model.zero_grad(), eager.zero_grad()
        assert all(map(torch.equal, step_of(model, loss), step_of(eager, loss)))


class Pooled(nn.Module):
    """Ops with several results of which the backward reads some: pooling with indices, dropout with its mask."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.GELU()) for _ in range(3)]
        self.body = nn.Sequential(*layers, nn.MaxPool2d(2), nn.Dropout(0.2), nn.Conv2d(8, 8, 3), nn.RReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).square().mean()  # type: ignore[no-any-return]


@pytest.mark.fast(1)
@pytest.mark.parametrize("slack", [1.0, 1.2])
def test_what_nobody_reads_is_not_fetched(slack: float, tmp_path: Path) -> None:
    eager, x = Pooled(), torch.randn(8, 8, 24, 24)
    least, _ = bounds(eager, x, offload=tmp_path)
    model = moved(copy.deepcopy(eager), int(slack * least), x, tmp_path)
    expected = step_of(eager, lambda m: m(x))
    assert all(map(torch.equal, step_of(model, lambda m: m(x)), expected))
    for _ in range(2):
        model.zero_grad()
        there = [*model.parameters(), *model.buffers(), x]
        peak = peak_bytes(lambda: model(x).backward(), there, "cpu")
        assert peak <= model.graphopt.plan.peak_bytes <= slack * least  # type: ignore[union-attr]
        assert not ops._ARRIVING


def test_shapes_that_come_no_more_leave_no_regions(tmp_path: Path) -> None:
    model = Blocks(2, p=0.0)
    least, _ = bounds(model, torch.randn(ROWS, WIDTH))
    graphopt.optimize(model, least, offload=tmp_path)
    depot = ops.file_depot(tmp_path)[1]
    assert isinstance(depot, FileDepot)
    for rows in (ROWS, ROWS - 1, ROWS - 2, ROWS - 3):
        model.zero_grad()
        model(torch.randn(rows, WIDTH)).backward()
        assert model.graphopt.plan.fetched  # type: ignore[union-attr]
        assert len(depot.tokens) == depot._end == 0


_FORKS = """
import copy, os, sys
from pathlib import Path
import torch
import graphopt
from tests.run.test_offload import ROWS, WIDTH, Blocks, DepotLink, step_of, where

torch.set_num_threads(1)
where.measure_link = lambda *_: DepotLink(1e11, 1e11, 1e-7)
torch.manual_seed(0)
eager, x = Blocks(2), torch.randn(ROWS, WIDTH)
try:
    graphopt.optimize(copy.deepcopy(eager), "1B", example_inputs=x)
except graphopt.BudgetError as error:
    model = graphopt.optimize(copy.deepcopy(eager), error.minimum_bytes, example_inputs=x, offload=Path(sys.argv[1]))
expected = step_of(eager, lambda m: m(x))
step_of(model, lambda m: m(x))
assert model.graphopt.plan.fetched
model.zero_grad()
child = os.fork()
same = all(map(torch.equal, step_of(model, lambda m: m(x)), expected))
if child == 0:
    os._exit(0 if same else 1)
sys.exit(os.waitpid(child, 0)[1] or not same)
"""


@pytest.mark.slow
def test_a_process_that_is_forked_has_a_file_of_its_own(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", _FORKS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


def test_updates_in_the_backward_cannot_be_undone(tmp_path: Path) -> None:
    model = Blocks(1)
    with pytest.raises(graphopt.UsageError, match="some parameters updated"):
        graphopt.train_step(
            model, None, torch.optim.SGD(model.parameters()), "1GiB", offload=tmp_path, update_in_backward=True
        )


@pytest.mark.slow
def test_the_least_that_an_update_needs_is_named_with_moving(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Blocks(), torch.randn(2 * ROWS, WIDTH)

    def step(budget: int) -> Any:
        own = copy.deepcopy(model)
        optimizer = torch.optim.AdamW(own.parameters())
        made = graphopt.train_step(own, None, optimizer, budget, accumulate=2, offload=tmp_path)
        return made(x)

    with pytest.raises(graphopt.BudgetError) as error:
        step(1)
    with pytest.raises(graphopt.BudgetError) as again:
        step(error.value.minimum_bytes - 1)
    assert again.value.minimum_bytes == error.value.minimum_bytes
    step(error.value.minimum_bytes)


@pytest.mark.fast(1)
@pytest.mark.parametrize(
    "edit",
    [
        lambda plan: replace(plan, moved=plan.moved[:-1]),
        lambda plan: replace(plan, moved=(*plan.moved[:-1], plan.moved[0])),
        lambda plan: replace(plan, moved=(*plan.moved[:-1], 10**6)),
        lambda plan: replace(plan, moved=(*plan.moved[:-1], -1)),
    ],
)
def test_plans_that_move_what_is_not_there(edit: Callable[[Any], Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Blocks(2), torch.randn(ROWS, WIDTH)
    least, _ = bounds(model, x)
    plan = moved(copy.deepcopy(model), least, x, tmp_path).graphopt.plan  # type: ignore[union-attr]
    wrong = replace(plan, graphs=(edit(plan.graphs[0]),))
    with pytest.raises(graphopt.PlanMismatchError, match="does not have"):
        graphopt.optimize(copy.deepcopy(model), plan=wrong, example_inputs=x, offload=tmp_path)

"""What is saved of sharded training goes on elsewhere: on other numbers of ranks, in a plain model, in fully_shard."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn, optim
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import graphopt
from tests.support.ranks import run_ranks
from tests.support.sharded import Awkward, global_batch, language_loss, seeded

#: Rows of the global batch, which divides by one, two and four ranks; steps before the save, and behind it.
ROWS, BEFORE, BEHIND = 8, 2, 2


def mine(i: int) -> tuple[torch.Tensor, ...]:
    """This rank's rows of the i-th global batch, the same whatever the number of ranks."""
    each = ROWS // dist.get_world_size()
    first = dist.get_rank() * each
    ids, _ = global_batch(i, 1, ROWS)
    return ids[first : first + each], ids.roll(1, 1)[first : first + each]


def build() -> tuple[nn.Module, optim.Optimizer]:
    model = seeded(Awkward)
    return model, optim.AdamW(model.parameters(), lr=1e-3)


def sharded() -> tuple[nn.Module, optim.Optimizer, graphopt.TrainStep]:
    model, optimizer = build()
    return model, optimizer, graphopt.train_step(model, language_loss, optimizer, shard=True, cost_model="roofline")


def load(model: nn.Module, optimizer: optim.Optimizer, folder: Path) -> None:
    weights, state = get_state_dict(model, optimizer)
    held = {"model": weights, "optimizer": state}
    dcp.load(held, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=held["model"], optim_state_dict=held["optimizer"])


def save(model: nn.Module, optimizer: optim.Optimizer, folder: Path) -> None:
    weights, state = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder)


def eager_losses(model: nn.Module, optimizer: optim.Optimizer) -> list[float]:
    """Of the steps behind the save, in an ordinary loop."""
    found = []
    for i in range(BEFORE, BEFORE + BEHIND):
        optimizer.zero_grad()
        ids, labels = mine(i)
        loss = language_loss(model(ids), labels)
        loss.backward()
        optimizer.step()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        found.append(float(mean) / dist.get_world_size())
    return found


def train_and_save(folder: Path) -> tuple[list[float], bool]:
    model, optimizer, step = sharded()
    for i in range(BEFORE):
        step(*mine(i))
    save(model, optimizer, folder)
    state = model.state_dict()
    are_dtensors = all(isinstance(value, DTensor) for name, value in state.items() if name != "shift")
    are_plain = list(state) == list(Awkward().state_dict())
    with step.whole_model():
        if dist.get_rank() == 0:
            torch.save({name: value.clone() for name, value in model.state_dict().items()}, folder / "whole.pt")
    return [float(step(*mine(i)).loss) for i in range(BEFORE, BEFORE + BEHIND)], are_dtensors and are_plain


def go_on_sharded(folder: Path) -> list[float]:
    model, optimizer, step = sharded()
    load(model, optimizer, folder)
    return [float(step(*mine(i)).loss) for i in range(BEFORE, BEFORE + BEHIND)]


def go_on_elsewhere(folder: Path, way: str) -> list[float]:
    model, optimizer = build()
    if way == "fully_shard":
        for block in (model.up, model.down):
            fully_shard(block)  # type: ignore[arg-type]
        fully_shard(model)
        optimizer = optim.AdamW(model.parameters(), lr=1e-3)
    load(model, optimizer, folder)
    if way == "fully_shard":
        save(model, optimizer, folder / "back")
    return eager_losses(model, optimizer)


def load_whole(folder: Path) -> bool:
    """A plain checkpoint goes into rows."""
    model, _, step = sharded()
    whole = torch.load(folder / "whole.pt")
    model.load_state_dict(whole)
    with step.whole_model():
        same = all(torch.equal(value, whole[name]) for name, value in model.state_dict().items())
    try:
        model.load_state_dict({**whole, "up.weight": whole["up.weight"][:-1]})
    except (graphopt.UsageError, RuntimeError) as error:
        return same and "up.weight" in str(error)
    return False


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    folder = tmp_path_factory.mktemp("sharded")
    results: list[Any] = run_ranks(2, train_and_save, folder)
    assert all(are_right for _, are_right in results)
    return folder, results[0][0]


def test_it_goes_on_with_the_same_bits(saved: tuple[Path, list[float]]) -> None:
    folder, losses = saved
    assert run_ranks(2, go_on_sharded, folder)[0] == losses


def test_it_goes_on_with_another_number_of_ranks(saved: tuple[Path, list[float]]) -> None:
    folder, losses = saved
    assert run_ranks(4, go_on_sharded, folder)[0] == pytest.approx(losses, rel=1e-6)


def test_it_goes_on_in_a_plain_model(saved: tuple[Path, list[float]]) -> None:
    folder, losses = saved
    assert run_ranks(1, go_on_elsewhere, folder, "plain")[0] == pytest.approx(losses, rel=1e-6)


def test_it_goes_on_in_fully_shard_and_comes_back(saved: tuple[Path, list[float]]) -> None:
    folder, losses = saved
    assert run_ranks(2, go_on_elsewhere, folder, "fully_shard")[0] == pytest.approx(losses, rel=1e-6)
    assert run_ranks(2, go_on_sharded, folder / "back")[0] == losses


def test_whole_tensors_are_loaded_into_rows(saved: tuple[Path, list[float]]) -> None:
    assert all(run_ranks(2, load_whole, saved[0]))


def masters_go_on(shard: Any) -> list[str]:
    """Half parameters with masters: state as DTensors, whole again, and what does not fit is refused."""
    found = []
    model = seeded(Awkward).bfloat16()
    optimizer = optim.AdamW(model.parameters(), lr=1e-3)
    step = graphopt.train_step(model, language_loss, optimizer, shard=shard, masters=True, cost_model="roofline")
    step(*mine(0))
    saved, state = step.state_dict(), optimizer.state_dict()
    assert all(isinstance(master, DTensor) for master in saved["masters"].values())
    assert all(isinstance(each["exp_avg"], DTensor) for each in state["state"].values())
    masters = {name: master.full_tensor() for name, master in saved["masters"].items()}
    whole = {number: {key: full(value) for key, value in each.items()} for number, each in state["state"].items()}
    optimizer.load_state_dict({**state, "state": whole})
    step.load_state_dict({**saved, "masters": masters})
    step(*mine(1))
    short = {n: {key: value[:2] if value.ndim else value for key, value in each.items()} for n, each in whole.items()}
    attempts: list[Callable[[], object]] = [
        lambda: optimizer.load_state_dict({**state, "state": short}),
        lambda: step.load_state_dict({**saved, "masters": {name: master[:1] for name, master in masters.items()}}),
    ]
    for attempt in attempts:
        try:
            attempt()
        except graphopt.UsageError as error:
            found.append(str(error))
    step.unshard()
    shapes = sorted(tuple(parameter.shape) for parameter in model.parameters())
    held = sorted(tuple(each.shape) for group in optimizer.param_groups for each in group["params"])
    assert held == shapes
    assert all(optimizer.state[each]["exp_avg"].shape == each.shape for each in optimizer.state)
    assert not any(isinstance(master, DTensor) for master in step.state_dict()["masters"].values())
    return found


def full(value: torch.Tensor) -> torch.Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


@pytest.mark.fast(1)
@pytest.mark.parametrize("shard", [True, "gradients", "optimizer"])
def test_masters_are_saved_loaded_and_made_whole(shard: Any) -> None:
    for found in run_ranks(2, masters_go_on, shard):
        assert len(found) == 2 and all("expected the shape" in said for said in found)


def copies() -> list[bool]:
    """A copy made where the model is whole is whole; one of rows refuses."""
    model, _, step = sharded()
    ids, _ = mine(0)
    with step.whole_model(), step.whole_model():
        whole = copy.deepcopy(model)
    found = [bool(torch.isfinite(whole(ids)).all())]
    for each in (model, copy.deepcopy(model)):
        try:
            each(ids)
        except graphopt.UsageError:
            found.append(True)
    return found


def test_copies_of_a_whole_model_are_whole() -> None:
    assert run_ranks(2, copies) == [[True] * 3] * 2


def other_trainings_before() -> float:
    """Ranks of which some shared parameters out by themselves before share out together."""
    some = dist.new_group([0, 1])
    if dist.get_rank() < 2:
        model = seeded(Awkward)
        alone = optim.AdamW(model.parameters(), lr=1e-3)
        graphopt.train_step(model, language_loss, alone, shard=True, group=some, cost_model="roofline")
    _, _, step = sharded()
    ids, _ = global_batch(0, 1, 2)
    return float(step(ids, ids.roll(1, 1)).loss)


def test_what_some_ranks_did_before_does_not_matter() -> None:
    assert len(set(run_ranks(3, other_trainings_before))) == 1

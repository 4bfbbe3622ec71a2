"""What is saved of sharded training goes on elsewhere: on other numbers of ranks, in a plain model, in fully_shard."""

from __future__ import annotations

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

"""What is saved of a model in shards goes on over other meshes and in eager; budgets are kept."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn, optim
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.tensor import DTensor

import graphopt
from graphopt.device.measure import peak_bytes
from graphopt.device.storages import local_of
from tests.support.ranks import run_ranks
from tests.support.tensor_parallel import WIDTH, global_batch, loss_of, mesh_of, own_batch, parallel, shards_of

BEFORE, BEHIND = 2, 2


def built(shards: int) -> tuple[nn.Module, optim.Optimizer, graphopt.TrainStep]:
    mesh = mesh_of(shards)
    model = parallel("llama", mesh["tp"])
    optimizer = optim.AdamW(model.parameters(), lr=1e-2)
    how = {"group": mesh["dp"].get_group(), "cost_model": "roofline"}
    return model, optimizer, graphopt.train_step(model, loss_of("llama"), optimizer, **how)  # type: ignore[arg-type]


def behind(step: graphopt.TrainStep, shards: int) -> list[float]:
    mesh = mesh_of(shards)
    return [float(step(*own_batch("llama", i, mesh)).loss) for i in range(BEFORE, BEFORE + BEHIND)]


def train_and_save(folder: Path, shards: int) -> tuple[list[float], bool]:
    model, optimizer, step = built(shards)
    for i in range(BEFORE):
        step(*own_batch("llama", i, mesh_of(shards)))
    weights, state = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder)
    averages = [held["exp_avg"] for held in optimizer.state.values()]
    return behind(step, shards), all(isinstance(each, DTensor) for each in (*weights.values(), *averages))


def load(model: nn.Module, optimizer: optim.Optimizer, folder: Path) -> None:
    weights, state = get_state_dict(model, optimizer)
    held = {"model": weights, "optimizer": state}
    dcp.load(held, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=held["model"], optim_state_dict=held["optimizer"])


def go_on(folder: Path, shards: int) -> list[float]:
    model, optimizer, step = built(shards)
    step(*own_batch("llama", 7, mesh_of(shards)))  # something else first, which loading undoes
    load(model, optimizer, folder)
    return behind(step, shards)


def go_on_in_eager(folder: Path, shards: int) -> list[float]:
    model = parallel("llama", mesh_of(shards)["tp"])
    optimizer, found = optim.AdamW(model.parameters(), lr=1e-2), []
    load(model, optimizer, folder)
    for i in range(BEFORE, BEFORE + BEHIND):
        inputs, labels = global_batch("llama", i)
        loss = loss_of("llama")(model(inputs), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(float(loss.detach()))
    return found


@pytest.mark.slow
def test_saved_state_goes_on_over_other_meshes_and_in_eager(tmp_path: Path) -> None:
    losses, are_dtensors = run_ranks(4, train_and_save, tmp_path, 2)[0]
    assert are_dtensors
    assert run_ranks(4, go_on, tmp_path, 2)[0] == losses
    assert run_ranks(2, go_on, tmp_path, 2)[0] == pytest.approx(losses, rel=1e-6)
    assert run_ranks(2, go_on, tmp_path, 1)[1] == pytest.approx(losses, rel=1e-6)
    assert run_ranks(2, go_on_in_eager, tmp_path, 2)[0] == pytest.approx(losses, rel=1e-6)


def half_with_masters() -> tuple[bool, bool, list[float], list[float]]:
    """Masters are float32 DTensors; parameters are these, rounded; what is loaded goes on with the same losses."""
    mesh = mesh_of(2)
    model = parallel("mlp", mesh["tp"]).to(torch.bfloat16)
    optimizer = optim.AdamW(model.parameters(), lr=1e-2)
    how = {"masters": True, "clip": graphopt.ClipNorm(0.5), "cost_model": "roofline"}
    step = graphopt.train_step(model, loss_of("mlp"), optimizer, **how)  # type: ignore[arg-type]

    def losses() -> list[float]:
        batches = [[each.bfloat16() for each in global_batch("mlp", i)] for i in range(2)]
        return [float(step(*batch).loss) for batch in batches]

    losses()
    saved = step.state_dict()
    masters = {name: local_of(each).clone() for name, each in saved["masters"].items()}
    known = [isinstance(each, DTensor) for name, each in saved["masters"].items() if "norm" not in name]
    rounded = map(torch.equal, (m.bfloat16() for m in masters.values()), shards_of(model))
    kept = {name: each.clone() for name, each in saved["masters"].items()}
    weights = {name: each.clone() for name, each in model.state_dict().items()}
    state = {key: {k: v.clone() for k, v in held.items()} for key, held in optimizer.state.items()}
    are_rounded, first = all(rounded), losses()
    model.load_state_dict(weights)
    for key, held in state.items():
        optimizer.state[key].update(held)
    step.load_state_dict({**saved, "masters": kept})
    return all(known), are_rounded, first, losses()


def test_half_shards_have_float32_masters() -> None:
    for are_dtensors, are_rounded, losses, again in run_ranks(2, half_with_masters):
        assert are_dtensors and are_rounded and losses == again


def peaks(shares: list[float]) -> list[tuple[int, int, int, int]]:
    """At so much of the way from the least peak to eager's: the budget, what was planned, and what a step took.

    Then how many ops run again.
    """
    mesh, found = mesh_of(2), []
    made = torch.Generator().manual_seed(mesh["dp"].get_local_rank())
    batch = [torch.randn(1024, WIDTH, generator=made) for _ in range(2)]

    def planned(budget: int | str) -> graphopt.TrainStep:
        model = parallel("mlp", mesh["tp"])
        optimizer = optim.AdamW(model.parameters(), lr=1e-2)
        how = {"group": mesh["dp"].get_group(), "example_inputs": batch, "clip": graphopt.ClipNorm(1.0)}
        return graphopt.train_step(model, loss_of("mlp"), optimizer, budget, **how)  # type: ignore[arg-type]

    plan = planned("1GiB").plan
    for share in shares:
        budget = round(plan.minimum_bytes + share * (plan.eager_peak_bytes - plan.minimum_bytes))
        step = planned(budget)
        for _ in range(2):
            step(*batch)
        state = [each for held in step.optimizer.state.values() for each in held.values()]
        held = [*step.model.parameters(), *step.accumulators, *state, *batch]
        # gloo lets go of a message somewhat late on a machine whose cores are taken: the least of five
        took = min(peak_bytes(partial(step, *batch), held, "cpu") for _ in range(5))
        found.append((budget, step.plan.peak_bytes, took, sum(len(graph.recomputed) for graph in step.plan.graphs)))
    return found


@pytest.mark.fast(1)
@pytest.mark.parametrize("world", [2, 4])
def test_a_rank_stays_inside_its_budget(world: int) -> None:
    # near the least budget there is no room for a second message that gloo lets go of late
    for rank, found in enumerate(run_ranks(world, peaks, [0.3, 0.6])):
        print(rank, found)
        for budget, planned, took, recomputed in found:
            assert took <= planned <= budget and took > 0.8 * planned
            assert recomputed

"""What a step of DTensors refuses, on all ranks, before it trains anything wrong."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn, optim
from torch.distributed.tensor import Replicate, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import graphopt
from graphopt.base.errors import GraphoptError
from graphopt.step.tensor_parallel.batches import number_of_batch
from tests.support.ranks import RankError as ProcessError
from tests.support.ranks import run_ranks
from tests.support.tensor_parallel import WIDTH, global_batch, loss_of, mesh_of, own_batch, parallel


def build(model: nn.Module, **options: Any) -> graphopt.TrainStep:
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    return graphopt.train_step(model, loss_of("mlp"), optimizer, cost_model="roofline", **options)


def without_group() -> None:
    build(parallel("mlp", mesh_of(2)["tp"]))


def over_all_ranks() -> None:
    build(parallel("mlp", mesh_of(2)["tp"]), group=dist.group.WORLD)


def over_other_shards() -> None:
    groups = [dist.new_group(ranks) for ranks in ([0, 3], [1, 2])]
    build(parallel("mlp", mesh_of(2)["tp"]), group=groups[dist.get_rank() in (1, 2)])


def over_some() -> None:
    groups = [dist.new_group([rank]) for rank in range(dist.get_world_size())]
    build(parallel("mlp", mesh_of(2)["tp"]), group=groups[dist.get_rank()])


def over_two_dimensions() -> None:
    mesh, model = mesh_of(2), nn.Linear(WIDTH, WIDTH)
    distribute_module(model, mesh)
    build(model)


def uneven() -> None:
    model = nn.Sequential(nn.Linear(WIDTH, 9))
    parallelize_module(model, mesh_of(dist.get_world_size())["tp"], {"0": ColwiseParallel()})
    build(model)


def other_seeds() -> None:
    model = nn.Sequential(parallel("mlp", mesh_of(2)["tp"]), nn.Linear(WIDTH, WIDTH))
    nn.init.constant_(model[1].weight, dist.get_rank())
    build(model)(*global_batch("mlp", 0))


def other_batches() -> None:
    step = build(parallel("mlp", mesh_of(2)["tp"]))
    for i in range(2):
        step(*global_batch("mlp", i + 5 * dist.get_rank()))


def other_weights() -> None:
    mesh = mesh_of(2)
    step = build(
        parallel("mlp", mesh["tp"]), group=mesh["dp"].get_group(), weights=lambda *_: 1.0 + (dist.get_rank() == 1)
    )
    step(*own_batch("mlp", 0, mesh))


def other_rows() -> None:
    """Ranks that hold shards of one copy would send their layers' messages for so many rows, or micro-batches."""
    mesh = mesh_of(2)
    step = build(parallel("mlp", mesh["tp"]), accumulate=2, weights=lambda *_: 1.0)
    step(*global_batch("mlp", 0))
    step(*(each[: 4 if dist.get_rank() else 8] for each in global_batch("mlp", 1)))


def a_dtensor_of_a_batch() -> None:
    mesh = mesh_of(2)["tp"]
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH))
    parallelize_module(model, mesh, {"0": ColwiseParallel(output_layouts=Replicate())})
    inputs, targets = global_batch("mlp", 0)
    build(model)(distribute_tensor(inputs, mesh, [Replicate()]), targets)


def a_dtensor_of_a_loss() -> None:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH))
    how = ColwiseParallel(output_layouts=Replicate(), use_local_output=False)
    parallelize_module(model, mesh_of(2)["tp"], {"0": how})
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    graphopt.train_step(model, lambda x, _: x.square().mean(), optimizer)(*global_batch("mlp", 0))


def compressed() -> None:
    build(parallel("mlp", mesh_of(2)["tp"]), compress=graphopt.EightBit())


def reordered() -> None:
    build(parallel("mlp", mesh_of(2)["tp"]), numerics="reordered")


def shared_out() -> None:
    build(parallel("mlp", mesh_of(2)["tp"]), shard=True)


def whole_state() -> None:
    """The optimizer's state is replaced by whole tensors."""
    model = parallel("mlp", mesh_of(2)["tp"])
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    step = graphopt.train_step(model, loss_of("mlp"), optimizer, cost_model="roofline")
    step(*global_batch("mlp", 0))
    for held in optimizer.state.values():
        if hasattr(held["momentum_buffer"], "full_tensor"):
            held["momentum_buffer"] = held["momentum_buffer"].full_tensor()
    step(*global_batch("mlp", 1))


def of_other_shards() -> None:
    """A parameter stays the same object, around another shard, as where `.to()` swaps it."""
    model = parallel("mlp", mesh_of(2)["tp"])
    step = build(model)
    step(*global_batch("mlp", 0))
    parameter: Any = model[0].up.weight
    parameter._local_tensor = parameter._local_tensor.clone()
    step(*global_batch("mlp", 1))


CASES: list[tuple[Callable[[], None], int, str]] = [
    (without_group, 4, r"over ranks \d, \d of 4 processes: say which of the others hold the same shards"),
    (over_all_ranks, 4, r"group= has rank \d, which holds other shards"),
    (over_all_ranks, 2, r"group= has rank \d, which holds other shards"),
    (over_other_shards, 4, "which does not hold the same shards, or has another group"),
    (over_some, 4, "all of them must train this model, 2 × 1"),
    (over_two_dimensions, 4, "over one mesh of one dimension"),
    (uneven, 2, "does not divide evenly over 2 ranks"),
    (other_seeds, 2, "1.weight is not sharded, and has other values on rank 0 than on rank 1: make the model"),
    (other_batches, 2, "has other values on rank 0 than on rank 1, after 1 step: its gradients differ"),
    (other_weights, 4, "ranks 0, 1 hold shards of one model, and their batches weigh"),
    (other_rows, 2, r"rank 0 would send \d+ messages where rank 1 would send \d+ messages"),
    (a_dtensor_of_a_batch, 2, "reads a DTensor that is no parameter"),
    (a_dtensor_of_a_loss, 2, "the loss is a DTensor: return a plain tensor"),
    (compressed, 2, r"compress=EightBit\(\) does not go with tensor parallel models"),
    (reordered, 2, "numerics='reordered' does not go with tensor parallel models"),
    (shared_out, 2, "shard=True does not go with tensor parallel models"),
    (whole_state, 2, "is a plain tensor, and the parameter is a DTensor"),
    (of_other_shards, 2, "were changed after train_step"),
]


def refused(cases: list[int]) -> None:
    for number in cases:
        function, _, message = CASES[number]
        with pytest.raises(GraphoptError, match=message):
            function()


@pytest.mark.fast(1)
@pytest.mark.parametrize("world", [2, 4])
def test_what_would_train_something_else_is_refused_on_all_ranks(world: int) -> None:
    run_ranks(world, refused, [number for number, case in enumerate(CASES) if case[1] == world])


def dying() -> bool:
    step = build(parallel("mlp", mesh_of(2)["tp"]))
    step(*global_batch("mlp", 0))
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(graphopt.RankError):
        step(*global_batch("mlp", 1))
    return True


def test_a_rank_that_dies_is_an_error_on_the_others() -> None:
    with pytest.raises(ProcessError, match="rank 1: the process died") as raised:
        run_ranks(2, dying)
    assert "rank 0" not in str(raised.value)


def told_of_batches(kind: str) -> list[bool]:
    """Whether each of three steps warned, in a model of which no rank has any parameter whole."""
    mesh = mesh_of(2)["tp"]
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False))
    parallelize_module(model, mesh, {"0": ColwiseParallel(), "1": RowwiseParallel()})
    step, told = build(model), []
    for i in range(3):
        inputs, targets = global_batch("mlp", i)
        if kind == "other" and i and dist.get_rank():
            inputs = inputs.flip(0)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step(inputs, targets)
        told.append(any("batches of other content" in str(each.message) for each in caught))
    return told


@pytest.mark.parametrize(("kind", "told"), [("same", [False] * 3), ("other", [False, True, False])])
def test_ranks_of_one_copy_with_other_batches_are_told_once(kind: str, told: list[bool]) -> None:
    assert run_ranks(2, told_of_batches, kind) == [told, told]


def test_a_batch_has_another_number_where_anything_of_it_is_other() -> None:
    x = torch.randn(300, 70)
    batches = [(x, 1), (x.flip(0), 1), (x.t(), 1), (x.double(), 1), (x, 2), (x[:299], 1), (x.T.contiguous().T, 1)]
    numbers = [number_of_batch(batch, {}) for batch in batches]
    assert numbers[-1] == numbers[0] and len(set(numbers)) == len(batches) - 1
    assert number_of_batch((), {"a": x, "b": 1}) == number_of_batch((), {"b": 1, "a": x})
    small = [torch.empty(0, 3), torch.tensor(1.5), torch.tensor(2.5), torch.zeros(2, 2).to_sparse()]
    assert len({number_of_batch((each,), {}) for each in small}) == 4

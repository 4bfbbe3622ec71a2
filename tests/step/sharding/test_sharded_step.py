"""Ranks that share parameters out train what one process trains on the same global batches, inside their budget."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn, optim
from torch.distributed.device_mesh import init_device_mesh

import graphopt
from tests.support.ranks import run_ranks
from tests.support.sharded import (
    alone,
    global_batch,
    language_loss,
    losses_of,
    part,
    seeded,
    step_peak_bytes,
    ulps,
    whole_parameters,
)

Make = Callable[[list[nn.Parameter]], optim.Optimizer]


def adamw(parameters: list[nn.Parameter]) -> optim.Optimizer:
    return optim.AdamW(parameters, lr=1e-3)


def momentum(parameters: list[nn.Parameter]) -> optim.Optimizer:
    return optim.SGD(parameters, lr=0.1, momentum=0.9)


def two_groups(parameters: list[nn.Parameter]) -> optim.Optimizer:
    return optim.AdamW([{"params": parameters[:3]}, {"params": parameters[3:], "lr": 3e-4}], lr=1e-3)


def adagrad(parameters: list[nn.Parameter]) -> optim.Optimizer:
    return optim.Adagrad(parameters, lr=0.01)


#: Options that all ways of `train_step` take, and an optimizer.
CASES: dict[str, tuple[Make, dict[str, Any]]] = {
    "plain": (momentum, {}),
    "norm": (momentum, {"clip": graphopt.ClipNorm(0.05)}),
    "largest": (momentum, {"clip": graphopt.ClipNorm(0.01, float("inf"))}),
    "groups": (two_groups, {"clip": graphopt.ClipNorm(0.05, per_group=True)}),
    "value": (momentum, {"clip": graphopt.ClipValue(1e-3)}),
    "everything": (
        momentum,
        {
            "accumulate": 2,
            "clip": graphopt.ClipNorm(0.05),
            "loss_scale": graphopt.DynamicLossScale(2.0**10, interval=2),
        },
    ),
    "in the backward": (momentum, {"update_in_backward": True}),
    "the optimizer's own step": (adagrad, {}),
    "adamw": (adamw, {}),
}


def train_both(names: list[str], how: int | str = 1) -> dict[str, tuple[float, float, list[Any], list[Any]]]:
    """Ulps between the losses, and between the parameters, of this world's sharded steps and one process's."""
    rank, world, group, found = dist.get_rank(), dist.get_world_size(), alone(), {}
    for name in names:
        make, options = CASES[name]
        options = {"cost_model": "roofline", "weights": "tokens", **options}
        model = seeded()
        single = graphopt.train_step(model, language_loss, make(list(model.parameters())), group=group, **options)
        expected, expected_norms = losses_of(single, [global_batch(i, world, 4) for i in range(4)])
        sharded = seeded()
        made = make(list(sharded.parameters()))
        shard: Any = how if isinstance(how, str) else True
        if isinstance(how, int) and how > 1:
            shard = init_device_mesh("cpu", (how, world // how))
        step = graphopt.train_step(sharded, language_loss, made, shard=shard, **options)
        losses, norms = losses_of(step, [part(i, rank, 4) for i in range(4)])
        pairs = zip(whole_parameters(step).values(), model.parameters(), strict=True)
        apart = max(ulps(mine, theirs.detach()) for mine, theirs in pairs)
        loss_ulps = ulps(torch.tensor(losses), torch.tensor(expected))
        found[name] = loss_ulps, apart, norms, expected_norms
    return found


def check(found: dict[str, tuple[float, float, list[Any], list[Any]]]) -> None:
    for name, (loss_ulps, parameter_ulps, norms, expected_norms) in found.items():
        print(f"{name}: losses {loss_ulps:.1f}, parameters {parameter_ulps:.1f} ulps")
        assert loss_ulps < 16, name
        # AdamW divides by the size of a gradient, so that roundings of small ones come out larger
        assert parameter_ulps < (2048 if name in ("adamw", "groups") else 64), name
        for norm, expected in zip(norms, expected_norms, strict=True):
            if expected is not None:
                torch.testing.assert_close(torch.tensor(norm), torch.tensor(expected), rtol=1e-5, atol=0)


def test_two_ranks_train_as_one_process() -> None:
    together = run_ranks(
        2, train_both, ["largest", "groups", "everything", "in the backward", "the optimizer's own step"]
    )
    check(together[0])
    assert [value[2] for value in together[0].values()] == [value[2] for value in together[1].values()]


def test_gradients_and_state_alone_may_be_shared_out() -> None:
    check(run_ranks(2, train_both, ["largest", "everything", "the optimizer's own step", "adamw"], "gradients")[0])


def state_goes_on() -> bool:
    """An optimizer's state, shared out beside whole parameters, is saved, loaded and made whole."""
    rank, found = dist.get_rank(), []
    steps = []
    for shard in ("gradients", False):
        model = seeded()
        made = adamw(list(model.parameters()))
        steps.append(graphopt.train_step(model, language_loss, made, shard=shard, cost_model="roofline", accumulate=2))
        steps[-1](*part(0, rank, 4))
    shared, whole = steps
    state = shared.optimizer.state_dict()
    shared.optimizer.load_state_dict(state)
    for step in steps:
        step(*part(1, rank, 4))
    assert shared.unshard() is shared.model
    states = [step.optimizer.state_dict()["state"] for step in steps]
    for number, held in states[1].items():
        found += [ulps(states[0][number][key], value) < 256 for key, value in held.items()]
    pairs = zip(shared.model.parameters(), whole.model.parameters(), strict=True)
    return all(found) and all(ulps(a.detach(), b.detach()) < 64 for a, b in pairs)


def test_shared_state_is_saved_loaded_and_made_whole() -> None:
    assert all(run_ranks(2, state_goes_on))


def test_rows_over_some_ranks_and_copies_over_others() -> None:
    check(run_ranks(4, train_both, ["everything"], 2)[0])


@pytest.mark.slow
def test_four_ranks_train_as_one_process_in_all_ways() -> None:
    check(run_ranks(4, train_both, list(CASES))[0])


def same_as_whole(dtype: torch.dtype | None) -> tuple[list[float], list[float], bool]:
    """Losses of sharded and of whole parameters on the same ranks, and whether parameters have the same bits."""
    rank, found = dist.get_rank(), []
    for options in ({"shard": True}, {}):
        model = seeded()
        step = graphopt.train_step(
            model, language_loss, momentum(list(model.parameters())), autocast=dtype, cost_model="roofline", **options
        )
        found.append((losses_of(step, [part(i, rank, 4) for i in range(3)])[0], whole_parameters(step)))
    (losses, parameters), (expected, whole) = found
    return losses, expected, all(torch.equal(parameters[name], whole[name]) for name in whole)


@pytest.mark.fast(1)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_two_ranks_have_the_bits_of_whole_parameters(dtype: torch.dtype | None) -> None:
    """A sum of two is the same in any order; where parameters are read in half precision they are gathered in it."""
    for losses, expected, is_equal in run_ranks(2, same_as_whole, dtype):
        assert losses == expected
        assert is_equal


class Blocks(nn.Module):
    """Blocks whose parameters are a good part of what a step takes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(96, 96) for _ in range(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + nn.functional.gelu(layer(x))
        return x


def peaks(shares: list[float], shard: Any = True) -> list[tuple[int, int, int, int]]:
    """Of budgets from the least to that of no recomputation: budget, planned, measured, gathers that run again."""
    rank, found = dist.get_rank(), []
    made = torch.Generator().manual_seed(rank)
    batch = torch.randn(256, 96, generator=made), torch.randn(256, 96, generator=made)

    def build(budget: int | None) -> graphopt.TrainStep:
        model = seeded(Blocks)
        return graphopt.train_step(
            model, nn.functional.mse_loss, adamw(list(model.parameters())), budget, example_inputs=batch, shard=shard
        )

    loose = build(None)
    least, most = loose.plan.minimum_bytes, loose.plan.peak_bytes
    for share in shares:
        budget = int(least + share * (most - least))
        step = build(budget)
        step(*batch)
        (graph,) = step.plan.graphs
        again = sum("gather" in name for name in graph.recomputed)
        found.append((budget, step.plan.peak_bytes, step_peak_bytes(step, batch), again))
    return found


def test_steps_stay_inside_their_budgets_and_predictions_hold() -> None:
    for found in run_ranks(2, peaks, [0.02, 0.5, 1.0]):
        for budget, planned, measured, _ in found:
            assert measured <= planned <= budget
            assert planned - measured < 0.02 * planned
        assert found[0][3] > 0  # near the least, parameters are gathered again


def test_steps_with_whole_parameters_stay_inside_their_budgets_too() -> None:
    for found in run_ranks(2, peaks, [0.02, 1.0], "gradients"):
        for budget, planned, measured, _ in found:
            assert measured <= planned <= budget
            assert planned - measured < 0.02 * planned


def refusals() -> list[str]:
    """What `train_step` says to models that it cannot share out, and to one that is called by itself."""
    said = []

    def attempt(run: Callable[[], object]) -> None:
        try:
            run()
        except graphopt.UsageError as error:
            said.append(str(error))
        else:
            said.append("nothing")

    def step(model: nn.Module, **options: Any) -> graphopt.TrainStep:
        made = options.pop("optimizer", momentum)(list(model.parameters()))
        return graphopt.train_step(model, None, made, shard=True, **options)

    class Scalar(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Parameter(torch.ones(()))

    strided = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    attempt(lambda: step(Scalar()))
    attempt(lambda: step(strided))
    attempt(lambda: step(nn.Linear(4, 4), compress=graphopt.TopK()))
    attempt(lambda: step(nn.Linear(4, 4), compress="auto"))
    attempt(lambda: step(nn.Linear(4, 4), compress=graphopt.EightBit(), update_in_backward=True))
    attempt(lambda: step(nn.Linear(4, 4), compiler="inductor"))
    attempt(lambda: step(nn.Linear(4, 4), optimizer=lambda p: optim.Muon(p[:1])))
    model = seeded()
    trained = graphopt.train_step(model, language_loss, momentum(list(model.parameters())), shard=True)
    ids, _ = part(0, 0, 2)
    attempt(lambda: model(ids))
    attempt(lambda: model.embedding(ids))
    with trained.whole_model():
        model(ids)
    attempt(lambda: model(ids))
    attempt(lambda: step(model))
    return said


def train_made_whole() -> list[bool]:
    """Whether a model that is whole again, and its optimizer, go on as those that were never shared out."""
    found = []
    rank = dist.get_rank()
    models, steps = [], []
    for shard in (True, False):
        model = seeded()
        steps.append(
            graphopt.train_step(
                model, language_loss, adamw(list(model.parameters())), shard=shard, cost_model="roofline"
            )
        )
        models.append(model)
        steps[-1](*part(0, rank, 4))
    assert steps[0].unshard() is models[0]
    states = [step.optimizer.state_dict()["state"] for step in steps]
    for number, held in states[0].items():
        found += [torch.equal(value, states[1][number][key]) for key, value in held.items()]
    found += [torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True)]
    models[0](part(0, 0, 2)[0])
    try:
        steps[0](*part(1, rank, 4))
    except graphopt.UsageError as error:
        found.append("unshard" in str(error))
    else:
        found.append(False)
    return found


def test_what_is_made_whole_again_is_as_if_it_had_never_been_shared_out() -> None:
    for found in run_ranks(2, train_made_whole):
        assert all(found)


def test_what_cannot_be_shared_out_is_refused() -> None:
    expected = [
        "the parameter one is a single number",
        "rows are shared out of contiguous parameters",
        "compress=TopK(...)",
        "compress=Auto(...)",
        "ranks agree first that nothing overflowed",
        "compiler='inductor'",
        "Muon",
        "cannot be called by itself",
        "cannot be called by itself",
        "cannot be called by itself",
        "shared out already",
    ]
    for said in run_ranks(2, refusals):
        assert len(said) == len(expected)
        for text, words in zip(said, expected, strict=True):
            assert words in text


def other_shapes() -> str:
    model = seeded()
    step = graphopt.train_step(model, language_loss, momentum(list(model.parameters())), shard=True)
    step(*part(0, dist.get_rank(), 4))
    try:
        step(*part(1, dist.get_rank(), 4 + dist.get_rank()))
    except graphopt.GraphoptError as error:
        said = str(error)
    else:
        said = "nothing"
    step(*part(2, dist.get_rank(), 4))  # nothing is broken
    return said


def test_other_shapes_on_a_rank_are_an_error_on_all() -> None:
    for said in run_ranks(2, other_shapes):
        assert "shape" in said


def overflow() -> tuple[list[bool], bool]:
    """A NaN on one rank skips the step on all, and nothing changes."""
    model = seeded()
    step = graphopt.train_step(
        model, language_loss, adamw(list(model.parameters())), shard=True, loss_scale=graphopt.ConstantLossScale(8.0)
    )
    step(*part(0, dist.get_rank(), 4))
    before = whole_parameters(step)
    with torch.no_grad():
        shift = model.shift
        assert isinstance(shift, torch.Tensor)
        if dist.get_rank() == 1:
            shift.fill_(float("nan"))
    skipped = step(*part(1, dist.get_rank(), 4)).skipped
    after = whole_parameters(step)
    shift.fill_(0.1)
    return [skipped, step(*part(1, dist.get_rank(), 4)).skipped], all(torch.equal(before[n], after[n]) for n in before)


def test_an_overflow_on_one_rank_skips_the_step_on_all() -> None:
    for skipped, is_unchanged in run_ranks(2, overflow):
        assert skipped == [True, False]
        assert is_unchanged

"""State that is shared out in loops as users write them: schedules, evaluation, other weights, saving, going on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn, optim
from torch.distributed.tensor import DTensor

import graphopt
from tests.support.ranks import run_ranks
from tests.support.sharded import global_batch, language_loss, part, seeded, step_peak_bytes

STAGES = ("optimizer", "gradients")


def adamw(model: nn.Module, rate: float = 1e-2) -> optim.Optimizer:
    return optim.AdamW(model.parameters(), lr=rate)


def whole(state: Any) -> Any:
    """A saved state with whole tensors; a collective call."""
    if isinstance(state, dict):
        return {key: whole(value) for key, value in state.items()}
    return state.full_tensor() if isinstance(state, DTensor) else state


def loop(shard: Any, make: Callable[..., optim.Optimizer]) -> list[Any]:
    """Losses, norms and parameters of a loop that does what loops do beside steps.

    RMSprop steps by itself, on rows that have to be those of the parameters as they are.
    """
    rank, found = dist.get_rank(), list[Any]()
    model = seeded()
    late = list(model.norm.parameters())  # type: ignore[union-attr]
    for parameter in late:
        parameter.requires_grad_(False)
    optimizer = make([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    schedule = optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    options: dict[str, Any] = {"clip": graphopt.ClipNorm(0.5), "lr_scheduler": schedule, "cost_model": "roofline"}
    step = graphopt.train_step(model, language_loss, optimizer, accumulate=2, shard=shard, **options)
    slow = [parameter.detach().clone() for parameter in model.parameters()]
    for i in range(6):
        optimizer.zero_grad()
        model.train()
        out = step(*part(i, rank, 4))
        found += [float(out.loss), float(out.grad_norm), schedule.get_last_lr()]
        for mean, parameter in zip(slow, model.parameters(), strict=True):
            mean.lerp_(parameter.detach(), 0.5)
        if i == 1:  # a layer is trained from now on
            for parameter in late:
                parameter.requires_grad_(True)
            optimizer.add_param_group({"params": late, "lr": 1e-3})
            schedule.base_lrs.append(1e-3)
            schedule.lr_lambdas *= 2
        if i == 2:  # the mean of the weights is looked at, and stays
            model.eval()
            for mean, parameter in zip(slow, model.parameters(), strict=True):
                parameter.data = mean.clone()
            with torch.no_grad():
                found.append(float(language_loss(model(part(9, 0, 4)[0]), part(9, 0, 4)[1])))
        if i == 3:
            optimizer.load_state_dict(whole(optimizer.state_dict()))
    step.unshard()
    states = optimizer.state_dict()["state"].values()
    return [*found, *(p.detach().clone() for p in model.parameters()), *(v for held in states for v in held.values())]


def same_loops() -> list[bool]:
    mine, theirs = loop("optimizer", optim.RMSprop), loop(False, optim.RMSprop)
    pairs = zip(mine, theirs, strict=True)
    return [torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs]


def test_a_loop_has_the_bits_of_one_with_whole_state() -> None:
    for found in run_ranks(2, same_loops):
        assert all(found), found


def near_loops() -> float:
    mine, theirs = loop("gradients", optim.AdamW), loop(False, optim.AdamW)
    return max(abs(a - b) for a, b in zip(mine, theirs, strict=True) if isinstance(a, float))


def test_rows_of_gradients_follow_too() -> None:
    assert max(run_ranks(2, near_loops)) < 1e-4


ROWS, BEFORE, BEHIND = 8, 2, 2


def mine(i: int) -> tuple[Tensor, ...]:
    """This rank's rows of the i-th global batch, the same whatever the number of ranks."""
    each = ROWS // dist.get_world_size()
    first = dist.get_rank() * each
    ids, _ = global_batch(i, 1, ROWS)
    return ids[first : first + each], ids.roll(1, 1)[first : first + each]


def steps_of(shard: Any) -> tuple[nn.Module, optim.Optimizer, graphopt.TrainStep]:
    model = seeded()
    optimizer = adamw(model)
    step = graphopt.train_step(model, language_loss, optimizer, shard=shard, cost_model="roofline")
    return model, optimizer, step


def train_and_save(folder: Path) -> tuple[list[float], int, int, int]:
    """Losses behind the save; bytes of this rank's state, of the state as it is planned, and of all parameters."""
    model, optimizer, step = steps_of("optimizer")
    for i in range(BEFORE):
        step(*mine(i))
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()["state"]}
    assert not any(isinstance(value, DTensor) for value in state["model"].values())
    held = [value for each in state["optimizer"].values() for value in each.values() if isinstance(value, DTensor)]
    dcp.save(state, checkpoint_id=folder)
    every = {"model": state["model"], "optimizer": whole(optimizer.state_dict()), "step": step.state_dict()}
    if dist.get_rank() == 0:
        torch.save(every, folder / "whole.pt")
    losses = [float(step(*mine(i)).loss) for i in range(BEFORE, BEFORE + BEHIND)]
    size = sum(value.to_local().nbytes for value in held)
    return losses, size, step.plan.resident_bytes["optimizer"], sum(p.nbytes for p in model.parameters())


def go_on(folder: Path, shard: Any) -> list[float]:
    model, optimizer, step = steps_of(shard)
    saved = torch.load(folder / "whole.pt", weights_only=True)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    return [float(step(*mine(i)).loss) for i in range(BEFORE, BEFORE + BEHIND)]


def go_on_in_place(folder: Path) -> list[float]:
    """`torch.distributed.checkpoint` fills what is there: state of a step that was taken, on any number of ranks."""
    model, optimizer, step = steps_of("optimizer")
    step(*mine(7))
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()["state"]}
    dcp.load(state, checkpoint_id=folder)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state["optimizer"]})
    return [float(step(*mine(i)).loss) for i in range(BEFORE, BEFORE + BEHIND)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    folder = tmp_path_factory.mktemp("shared")
    results: list[Any] = run_ranks(2, train_and_save, folder)
    for _, size, planned, parameter_bytes in results:  # two tensors of each parameter that learns
        assert 0.4 * 2 * parameter_bytes < size < planned < 0.55 * 2 * parameter_bytes
    return folder, results[0][0]


@pytest.mark.fast(1)
@pytest.mark.parametrize("shard", ["optimizer", False])
def test_it_goes_on_with_the_same_bits(saved: tuple[Path, list[float]], shard: Any) -> None:
    folder, losses = saved
    assert run_ranks(2, go_on, folder, shard)[0] == losses


@pytest.mark.fast(1)
@pytest.mark.parametrize(("world", "shard"), [(4, "optimizer"), (2, "gradients"), (2, True), (1, False)])
def test_it_goes_on_elsewhere(saved: tuple[Path, list[float]], world: int, shard: Any) -> None:
    folder, losses = saved
    assert run_ranks(world, go_on, folder, shard)[0] == pytest.approx(losses, rel=1e-6)


@pytest.mark.fast(1)
@pytest.mark.parametrize("world", [2, 4])
def test_distributed_checkpoints_are_loaded_in_place(saved: tuple[Path, list[float]], world: int) -> None:
    folder, losses = saved
    assert run_ranks(world, go_on_in_place, folder)[0] == pytest.approx(losses, rel=0 if world == 2 else 1e-6)


class Blocks(nn.Module):
    """Blocks whose parameters are a good part of what a step takes, some of which travel alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(160, 160) for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + nn.functional.gelu(layer(x))
        return x


def peaks(options: dict[str, Any]) -> list[tuple[int, int, int]]:
    """Of a tight and a loose budget: budget, planned, measured."""
    made, found = torch.Generator().manual_seed(dist.get_rank()), []
    batch = torch.randn(256, 160, generator=made), torch.randn(256, 160, generator=made)

    def build(budget: int | None) -> graphopt.TrainStep:
        model, loss = seeded(Blocks), nn.functional.mse_loss
        return graphopt.train_step(
            model, loss, adamw(model), budget, example_inputs=batch, shard="optimizer", **options
        )

    loose = build(None)
    least, most = loose.plan.minimum_bytes, loose.plan.peak_bytes
    for share in (0.02, 1.0):
        step = build(int(least + share * (most - least)))
        step(*batch)
        assert step._exchange is not None
        measured = step_peak_bytes(step, batch, step._exchange.tensors)
        found.append((step.plan.budget_bytes, step.plan.peak_bytes, measured))
    return found


@pytest.mark.fast(1)
@pytest.mark.parametrize(
    "options", [{}, {"accumulate": 4, "clip": graphopt.ClipNorm(1.0)}, {"compress": graphopt.EightBit()}]
)
def test_steps_stay_inside_their_budgets_and_predictions_hold(options: dict[str, Any]) -> None:
    """508 bytes are planned for numbers that are there for a moment."""
    for found in run_ranks(2, peaks, options):
        for budget, planned, measured in found:
            assert measured <= planned <= budget
            assert planned - measured < 1024


def sent() -> list[int]:
    """Bytes that a rank sends in a step by the report, state shared out and whole; of parameters that learn."""
    found = []
    for shard in ("optimizer", False):
        model, _, step = steps_of(shard)
        step(*part(0, dist.get_rank(), 4))
        figures = step.report.step
        assert figures is not None
        assert any("optimizer state: rows over 2 ranks" in line for line in figures.exchange) is (shard is not False)
        found.append(figures.sent_bytes)
    return [*found, sum(p.nbytes for p in model.parameters() if p.requires_grad)]


def test_a_report_has_what_is_shared() -> None:
    for shared, whole_bytes, parameter_bytes in run_ranks(2, sent):
        assert shared == whole_bytes + parameter_bytes // 2


class Scalar(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))


def refusals() -> list[str]:
    """What is said to what state cannot be shared out of."""
    said = []
    strided = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def attempt(model: nn.Module, make: Callable[..., optim.Optimizer] = optim.AdamW, **options: Any) -> None:
        try:
            graphopt.train_step(model, None, make(list(model.parameters())), **{"shard": "optimizer", **options})
        except graphopt.UsageError as error:
            said.append(str(error))
        else:
            said.append("nothing")

    attempt(Scalar())
    attempt(strided)
    attempt(nn.Linear(4, 4), lambda p: optim.Muon(p[:1]))
    attempt(nn.Linear(4, 4), optim.Adafactor)
    attempt(nn.Linear(4, 4), optim.LBFGS)
    attempt(nn.Linear(4, 4), update_in_backward=True)
    attempt(nn.Linear(4, 4), compiler="inductor")
    attempt(nn.Linear(4, 4), shard="state")
    attempt(nn.Linear(4, 4), shard="gradients", compress=graphopt.TopK())
    attempt(nn.Linear(4, 4), shard=("optimizer", "gradients")[dist.get_rank()])
    attempt(nn.Linear(4, 4), shard=("optimizer", False)[dist.get_rank()])
    attempt(nn.Linear(4, 4))
    return said


def test_what_cannot_be_shared_out_is_refused() -> None:
    expected = [
        "the parameter one is a single number",
        "rows are shared out of contiguous parameters",
        "Muon",
        "Adafactor",
        "LBFGS",
        "shard='optimizer' does not go with update_in_backward=True",
        "compiler='inductor'",
        "expected True, False, 'gradients', 'optimizer' or",
        "shard='optimizer' goes with all methods",
        "shard is 'optimizer' on rank 0 and 'gradients' on rank 1",
        "shard is 'optimizer' on rank 0 and False on rank 1",
        "nothing",
    ]
    for said in run_ranks(2, refusals):
        for text, words in zip(said, expected, strict=True):
            assert words in text


def changed_parameters(shard: str) -> list[str]:
    """What is said where parameters became what state cannot be shared out of; and by a step that is over."""
    said = []
    model, _, step = steps_of(shard)
    step(*part(0, dist.get_rank(), 4))
    before = model.up.weight.data  # type: ignore[union-attr]
    changes: list[Callable[[], object]] = [
        lambda: setattr(model.up.weight, "data", before.t().contiguous().t()),  # type: ignore[union-attr]
        lambda: model.bfloat16(),
        lambda: step.unshard(),
    ]
    for change in changes:
        change()
        try:
            step(*part(1, dist.get_rank(), 4))
        except graphopt.UsageError as error:
            said.append(str(error))
        model.up.weight.data = before  # type: ignore[union-attr]
        model.float()
    return said


def built_twice() -> list[str]:
    """What a second step is told of the same optimizer, before the first one is over; and then."""
    model, optimizer, first = steps_of("optimizer")
    said = []
    for _ in range(2):
        try:
            graphopt.train_step(model, language_loss, optimizer, cost_model="roofline")(*part(0, dist.get_rank(), 4))
        except graphopt.UsageError as error:
            said.append(str(error))
            first.unshard()
    return said


def test_state_is_shared_out_by_one_step_at_a_time() -> None:
    for said in run_ranks(2, built_twice):
        assert len(said) == 1 and "is shared out already" in said[0]


@pytest.mark.fast(1)
@pytest.mark.parametrize("shard", STAGES)
def test_parameters_that_became_others_are_refused(shard: str) -> None:
    expected = ["has strides", "became torch.bfloat16", "unshard"]
    for said in run_ranks(2, changed_parameters, shard):
        for text, words in zip(said, expected, strict=True):
            assert words in text

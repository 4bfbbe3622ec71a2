"""Gradients that are scattered compressed: the bits of the same written in plain torch, inside the budget."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn, optim
from torch.distributed.device_mesh import init_device_mesh
from torch.nn import functional as F

import graphopt
from graphopt.base.parts import part_of
from tests.support.ranks import run_ranks
from tests.support.sharded import seeded, whole_parameters

BLOCK, STEPS, ROWS = 512, 3, 8


class Mixed(nn.Module):
    """Weights that travel alone, together and as they are, with rows that do not divide, or not one for each rank."""

    def __init__(self, biases: bool = True) -> None:
        super().__init__()
        self.up, self.middle = nn.Linear(40, 515, bias=biases), nn.Linear(515, 37, bias=biases)
        self.down = nn.Linear(37, 40, bias=biases)
        self.row = nn.Parameter(torch.ones(1, 1100))

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.row[:, :40]
        return self.down(torch.tanh(self.middle(torch.tanh(self.up(x)))))


class Late(Mixed):
    """Has a weight that only the last, short micro-batch reads."""

    def __init__(self) -> None:
        super().__init__()
        self.late = nn.Parameter(torch.ones(40, 40))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x @ self.late if len(x) == 2 else x)


def batch(i: int, rank: int) -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(100 * i + rank)
    x, y = torch.randn(2, ROWS, 40, generator=made)
    return x, y


def sgd(model: nn.Module) -> optim.Optimizer:
    """Of powers of two, whose products are exact: kernels fuse them with sums here and there, by an element's place."""
    return optim.SGD(model.parameters(), 0.5, momentum=0.5, fused=True)


def in_the_graph(
    options: dict[str, Any], how: Any, biases: bool
) -> tuple[list[float], dict[str, Tensor], dict[str, Any]]:
    with graphopt.kernels.use("stock"):
        model = seeded(lambda: Mixed(biases))
        options = {"cost_model": "roofline", "shard": how, **options}
        step = graphopt.train_step(model, F.mse_loss, sgd(model), **options)
        losses = [float(step(*batch(i, dist.get_rank())).loss) for i in range(STEPS)]
    return losses, whole_parameters(step), step.state_dict()["compression"]["state"]


def eight_bits(x: Tensor) -> Tensor:
    """What is sent of a tensor, [n]: of each block, whole steps of 1/127 of its largest, of 16 significant bits."""
    blocks = F.pad(x, (0, -len(x) % BLOCK)).view(-1, BLOCK)
    step = (blocks.abs().amax(1, keepdim=True) / 127).view(torch.int32)
    step = ((step + 0xFF) & ~0xFF).view(torch.float32)
    inverse = torch.where(step > 0, 1 / step, 0)
    return ((blocks * inverse).round() * step).view(-1)[: len(x)]


def by_rows(x: Tensor, world: int) -> Tensor:
    """The same of each rank's rows by themselves."""
    return torch.cat([eight_bits(x[part_of(len(x), r, world)].flatten()) for r in range(world)]).view_as(x)


def gathered(sent: Tensor) -> list[Tensor]:
    every = [torch.empty_like(sent) for _ in range(dist.get_world_size())]
    dist.all_gather(every, sent)
    return every


def total_of(every: list[Tensor]) -> Tensor:
    """The sum, in order."""
    total = every[0].float()
    for other in every[1:]:
        total += other
    return total


def over_copies(every: list[Tensor], kept: Tensor, copies: int) -> Tensor:
    """What all ranks sent of a gradient, summed up by rows, and then, compressed anew, over copies.

    What this rank rounds off of its own rows is added to what it keeps.
    """
    world, mine = len(every) // copies, divmod(dist.get_rank(), len(every) // copies)
    total = torch.zeros_like(every[0])
    for rank in range(world):
        rows = part_of(len(total), rank, world)
        sent = []
        for copy in range(copies):
            summed = total_of([each[rows] for each in every[copy * world : (copy + 1) * world]])
            sent.append(eight_bits(summed.flatten()).view_as(summed))
            if (copy, rank) == mine:
                kept[rows] += summed - sent[-1]
        total[rows] = total_of(sent)
    return total


def by_hand(
    micros: int, half: torch.dtype | None, copies: int, biases: bool
) -> tuple[list[float], dict[str, Tensor], dict[str, Any]]:
    """Whole parameters, whose gradients are compressed and summed up in plain torch."""
    model, world = seeded(lambda: Mixed(biases)), dist.get_world_size()
    optimizer, losses = sgd(model), []
    kept = {n: torch.zeros_like(p) for n, p in model.named_parameters() if p.numel() >= 1024 and half is None}
    for i in range(STEPS):
        sums: dict[str, Tensor] = {}
        loss = torch.zeros(())
        for x, y in zip(*(t.chunk(micros) for t in batch(i, dist.get_rank())), strict=True):
            optimizer.zero_grad()
            one = F.mse_loss(model(x), y)
            (one / (world * micros)).backward()
            loss += one.detach() / (world * micros)
            for name, p in model.named_parameters():
                assert p.grad is not None
                sent = p.grad
                if name in kept:
                    x_ = p.grad + kept[name]
                    sent = by_rows(x_, world // copies)
                    kept[name] = x_ - sent
                elif half is not None:
                    sent = p.grad.to(half)
                every = gathered(sent)
                total = over_copies(every, kept[name], copies) if copies > 1 else total_of(every)
                sums[name] = sums[name] + total if name in sums else total
        for name, p in model.named_parameters():
            p.grad = sums[name]
        optimizer.step()
        losses.append(float(total_of(gathered(loss))))
    return losses, {n: p.detach() for n, p in model.named_parameters()}, {n: {"residual": t} for n, t in kept.items()}


def both_ways(how: Any, half: torch.dtype | None, micros: int, copies: int = 1, **options: Any) -> None:
    method = graphopt.EightBit() if half is None else graphopt.HalfCast(half)
    biases = dist.get_world_size() == 2
    if copies > 1:
        how = init_device_mesh("cpu", (copies, dist.get_world_size() // copies))
    found = in_the_graph({"compress": method, "accumulate": micros, **options}, how, biases)
    expected = by_hand(micros, half, copies, biases)
    torch.testing.assert_close(found[0], expected[0], rtol=0 if biases else 2.0**-22, atol=0)
    for name, value in expected[1].items():
        assert torch.equal(found[1][name], value), name
    assert set(found[2]) == set(expected[2])
    for name, held in expected[2].items():
        assert set(found[2][name]) == {"residual"}
        assert torch.equal(found[2][name]["residual"], held["residual"]), name


@pytest.mark.fast(1)
@pytest.mark.parametrize("how", [True, "gradients"])
@pytest.mark.parametrize("half", [None, torch.bfloat16])
@pytest.mark.parametrize("micros", [1, 2])
def test_two_ranks_have_the_bits_of_plain_torch(how: Any, half: torch.dtype | None, micros: int) -> None:
    run_ranks(2, both_ways, how, half, micros)


@pytest.mark.slow
def test_four_ranks_and_copies_of_two_do_too() -> None:
    """Sums go by rank, whatever their number. What travels as it is is summed up in an order of gloo's own."""
    run_ranks(4, several_ways)


def several_ways() -> None:
    both_ways(True, None, 1)
    both_ways(True, torch.float16, 1)
    both_ways(None, None, 2, copies=2)


def test_a_loss_scale_changes_no_bit() -> None:
    run_ranks(2, scaled)


def scaled() -> None:
    both_ways(True, None, 2, loss_scale=graphopt.ConstantLossScale(2.0**12))


def of_method(method: Any, copies: int = 1) -> tuple[list[float], list[float], dict[str, Tensor], float]:
    """Losses compressed and not; parameters, and the part of the bytes that is still sent, gathers among them."""
    found = []
    shard: Any = True if copies == 1 else init_device_mesh("cpu", (copies, dist.get_world_size() // copies))
    for compress in (method, None):
        model = seeded(Mixed)
        step = graphopt.train_step(model, F.mse_loss, sgd(model), shard=shard, compress=compress, cost_model="roofline")
        losses = [float(step(*batch(i, dist.get_rank())).loss) for i in range(STEPS)]
        found.append((losses, whole_parameters(step), step.report.step.sent_bytes))
    return found[0][0], found[1][0], found[0][1], found[0][2] / found[1][2]


@pytest.mark.slow
@pytest.mark.parametrize("method", [graphopt.QSGD(8), graphopt.HalfCast(torch.bfloat16)])
def test_copies_of_two_are_near_with_other_methods_too(method: Any) -> None:
    together = run_ranks(4, of_method, method, 2)
    for losses, uncompressed, parameters, _ in together:
        torch.testing.assert_close(losses, uncompressed, rtol=0.02, atol=0)
        assert losses == together[0][0] and losses != uncompressed
        assert all(torch.equal(value, together[0][2][name]) for name, value in parameters.items())


def test_random_rounding_is_near_and_alike_on_all_ranks() -> None:
    first, second = run_ranks(2, of_method, graphopt.QSGD(8))
    torch.testing.assert_close(first[0], first[1], rtol=0.02, atol=0)
    assert first[0] == second[0] and first[0] != first[1]
    assert all(torch.equal(value, second[2][name]) for name, value in first[2].items())
    assert 0.6 < first[3] < 0.67  # a parameter is gathered twice, or once, in 4 bytes; its gradient takes 1.01


def trained(
    steps: list[int], spoilt: int, micros: int, build: type[nn.Module]
) -> tuple[dict[str, Tensor], dict[str, Any], list[bool]]:
    """Of some steps, in one of which the last rows of rank 1 are infinite: parameters, what is kept, and skips."""
    model = seeded(build)
    options: dict[str, Any] = {"accumulate": micros, "compress": graphopt.EightBit(), "cost_model": "roofline"}
    step = graphopt.train_step(model, F.mse_loss, sgd(model), shard=True, **options)
    skipped = []
    for i in steps:
        x, y = batch(i, dist.get_rank())
        if i == spoilt and dist.get_rank() == 1:
            y[-1] = torch.inf
        skipped.append(step(x, y).skipped)
    return whole_parameters(step), step.state_dict()["compression"]["state"], skipped


def overflow(micros: int, build: type[nn.Module]) -> None:
    parameters, kept, skipped = trained([0, 1, 2], 1, micros, build)
    assert skipped == [False, True, False]
    expected, expected_kept, _ = trained([0, 2], -1, micros, build)
    for name, value in expected.items():
        assert torch.equal(parameters[name], value), name
    for name, held in expected_kept.items():
        assert torch.equal(kept[name]["residual"], held["residual"]), name


@pytest.mark.fast(1)
@pytest.mark.parametrize(("micros", "build"), [(1, Mixed), (2, Mixed), (3, Late)])
def test_an_overflow_on_one_rank_leaves_everything_as_it_was(micros: int, build: type[nn.Module]) -> None:
    run_ranks(2, overflow, micros, build)


def of_half() -> tuple[str, ...]:
    model = seeded(Mixed).bfloat16()
    step = graphopt.train_step(
        model, F.mse_loss, sgd(model), shard=True, compress=graphopt.EightBit(), cost_model="roofline"
    )
    x, y = batch(0, dist.get_rank())
    assert not step(x.bfloat16(), y.bfloat16()).skipped
    exchange: tuple[str, ...] = step.report.step.exchange
    return exchange


def test_gradients_of_half_parameters_go_as_they_are_and_the_report_says_so() -> None:
    for said in run_ranks(2, of_half):
        assert "compression none: 7 parameters" in said


def goes_on(how: Any) -> None:
    """Saved after two steps and loaded, by its own rank and by others' number of ranks."""

    def build() -> graphopt.TrainStep:
        model = seeded(Mixed)
        options: dict[str, Any] = {"compress": graphopt.EightBit(), "cost_model": "roofline"}
        return graphopt.train_step(model, F.mse_loss, sgd(model), shard=how, **options)

    rank, first = dist.get_rank(), build()
    for i in range(2):
        first(*batch(i, rank))
    # what is given are the tensors themselves
    saved = deepcopy(first.state_dict())
    second = build()
    second.model.load_state_dict(deepcopy(first.model.state_dict()))
    second.optimizer.load_state_dict(deepcopy(first.optimizer.state_dict()))
    second.load_state_dict(saved)
    for step in (first, second):
        step(*batch(2, rank))
    pairs = zip(whole_parameters(first).items(), whole_parameters(second).values(), strict=True)
    for (name, one), other in pairs:
        assert torch.equal(one, other), name
    kept = saved["compression"]["state"]
    assert kept["up.weight"]["residual"].shape == (515, 40)  # of the whole parameter, on each rank
    four = [{**saved, "compression": {**saved["compression"], "rank": r, "world": 4}} for r in range(4)]
    second.load_state_dict(four)
    after = second.state_dict()["compression"]["state"]
    assert all(torch.equal(after[n]["residual"], 2 * held["residual"]) for n, held in kept.items())
    with pytest.raises(graphopt.UsageError, match="pass the list"):
        second.load_state_dict(four[0])


@pytest.mark.fast(1)
@pytest.mark.parametrize("how", [True, "gradients"])
def test_what_is_kept_is_saved_and_loaded(how: Any) -> None:
    run_ranks(2, goes_on, how)

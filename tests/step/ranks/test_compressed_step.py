"""The graph's compression is the protocols run by hand, to the bit; an overflow anywhere is everybody's."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn, optim
from torch.nn import functional as F

import graphopt
from graphopt.compression.bucket import Bucket
from graphopt.compression.collectives import Sender
from graphopt.compression.interleaving import Interleaved
from graphopt.compression.methods import Compression
from graphopt.compression.protocols import at_step, protocol_of, travels_by
from graphopt.compression.residuals import initial_state
from graphopt.device.ranks import ranks_of
from tests.support.ranks import RankError, run_ranks
from tests.support.tensors import same_bits
from tests.support.train_together import resident, settled_peak_bytes

METHODS: dict[str, Compression] = {
    "half": graphopt.HalfCast(torch.float16),
    "bf16": graphopt.HalfCast(torch.bfloat16),
    "8-bit": graphopt.EightBit(),
    "qsgd": graphopt.QSGD(bits=4),
    "top-k": graphopt.TopK(0.05),
    "dgc": graphopt.DGC(0.02, max_norm=0.05, warmup_steps=1),
    "threshold": graphopt.Threshold(1e-3),
    "power": graphopt.PowerSGD(2),
}
STEPS = 3
#: Of a gradient's norm, some below it and one above.
LIMITS = (0.01, 0.03, 0.05, 100.0)
#: What travels together in the graph.
TOGETHER = [["second.weight", "first.weight"], ["second.bias", "first.bias"]]


class Small(nn.Module):
    """Two parameters that are worth compressing, two that are not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(40, 50), nn.Linear(50, 40)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(self.second(torch.tanh(self.first(x))), y)


def model() -> nn.Module:
    torch.manual_seed(0)
    return Small()


def batches(rank: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(rank)
    return [(x, y) for x, y in torch.randn(STEPS, 2, 8, 40, generator=generator)]


def sgd(parameters: Any) -> optim.Optimizer:
    return optim.SGD(parameters, 0.1, fused=True)


def in_the_graph(method: Compression) -> list[Any]:
    net = model()
    with graphopt.kernels.use("stock"):
        step = graphopt.train_step(net, None, sgd(net.parameters()), compress=method, cost_model="roofline")
        for x, y in batches(dist.get_rank()):
            step(x, y)
    kept = step.state_dict()["compression"]["state"]
    return [
        {name: p.detach().numpy() for name, p in net.named_parameters()},
        {f"{n}: {k}": tensor.numpy() for n, held in kept.items() for k, tensor in held.items()},
    ]


def by_hand(method: Compression) -> list[Any]:
    """The protocols on real tensors.

    On two ranks one parameter at a time: what travels together makes no difference. More ranks add up a message's
    elements in an order that depends on where they stand in it, so that the same must travel together.
    """
    net = model()
    optimizer, ranks = sgd(net.parameters()), ranks_of()
    assert ranks is not None
    kept = {name: initial_state(method, name, p.detach()) for name, p in net.named_parameters()}
    with graphopt.kernels.use("stock"):
        for number, (x, y) in enumerate(batches(ranks.rank)):
            optimizer.zero_grad()
            (net(x, y) / ranks.world).backward()
            now = at_step(method, number)
            gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
            clip_locally(method, list(gradients.values()), ranks.world)
            sender, overflow = Sender(ranks), torch.zeros(())
            running = Interleaved(sender.begin, sender.finish)
            for names in TOGETHER if ranks.world > 2 else [[name] for name in gradients]:
                shapes = tuple(tuple(gradients[name].shape) for name in names)
                how = travels_by(now, shapes[0])
                state = {key: [kept[name][key] for name in names] for key in kept[names[0]]}
                where = (overflow, ranks.rank, ranks.world, ranks.backend, state)
                running.start(protocol_of(how)(Bucket(shapes, [gradients[n] for n in names], *where, draw=number)))
            running.finish(partial(sender.agree, overflow))
            optimizer.step()
    return [
        {name: p.detach().numpy() for name, p in net.named_parameters()},
        {f"{n}: {k}": tensor.numpy() for n, held in kept.items() for k, tensor in held.items()},
    ]


def clip_locally(method: Compression, gradients: list[Tensor], world: int) -> None:
    if isinstance(method, graphopt.DGC) and method.max_norm is not None:
        norm = graphopt.kernels.gradient_norm(gradients, 2.0)[0]
        torch._foreach_mul_(gradients, ((norm + 1e-6).reciprocal() * (method.max_norm / math.sqrt(world))).clamp(max=1))


def both_ways() -> dict[str, tuple[list[Any], list[Any]]]:
    return {name: (in_the_graph(method), by_hand(method)) for name, method in METHODS.items()}


@pytest.mark.fast(1)
@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_the_graph_does_what_the_protocols_do_by_hand(world: int) -> None:
    for found in run_ranks(world, both_ways):
        if world > 2:  # it casts all four together
            del found["half"], found["bf16"]
        for name, (graph, hand) in found.items():
            for ours, theirs in zip(graph, hand, strict=True):
                assert ours.keys() == theirs.keys(), name
                different = [key for key in ours if ours[key].tobytes() != theirs[key].tobytes()]
                assert different == [], name


def overflowing() -> dict[str, list[bool]]:
    """For each method, with a loss scale or without: a step with a NaN on one rank, and whether it left no trace."""
    scale = graphopt.DynamicLossScale(2.0**8, interval=100)
    every = {
        "none": (None, scale),
        **{name: (how, (None, scale)[i % 2]) for i, (name, how) in enumerate(METHODS.items())},
    }
    return {name: one_overflow(method, given, dist.get_rank()) for name, (method, given) in every.items()}


def one_overflow(method: Compression | None, scale: Any, rank: int) -> list[bool]:
    late, clean = ((net := model(), trained(net, method, scale)) for _ in range(2))
    first, second, bad = batches(rank)
    poison = bad[0].clone()
    poison[3, 3] = float("nan") if rank == 1 else 0.0
    late[1](*first), clean[1](*first)
    before = everything(*late)
    out = late[1](poison, bad[1])
    same = [out.skipped, everything(*late) == before]
    if scale is not None:
        same.append(late[1].loss_scale == 2.0**7)
        late[1]._scale.tensor("scale").fill_(2.0**8)
    assert late[1]._exchange is not None
    late[1]._exchange.steps = 1
    late[1](*second), clean[1](*second)
    return [*same, everything(*late) == everything(*clean)]


def trained(net: nn.Module, method: Compression | None, scale: Any) -> graphopt.TrainStep:
    options = {"compress": method, "loss_scale": scale, "cost_model": "roofline"}
    return graphopt.train_step(net, None, sgd(net.parameters()), **options)


def everything(net: nn.Module, step: graphopt.TrainStep) -> list[bytes]:
    kept = step.state_dict()["compression"]["state"]
    tensors = [*net.parameters(), *(tensor for held in kept.values() for tensor in held.values())]
    return [tensor.detach().numpy().tobytes() for tensor in tensors]


@pytest.mark.slow
def test_a_nan_on_one_rank_skips_the_step_on_all_and_poisons_nothing() -> None:
    for found in run_ranks(2, overflowing, timeout=400):
        assert {name: checks for name, checks in found.items() if not all(checks)} == {}


def restarted() -> dict[str, bool]:
    """Whether a training that is saved in the middle goes on as if nothing had been."""
    found = {}
    for name in ("dgc", "power"):
        through, saved = model(), model()
        whole, first = trained(through, METHODS[name], None), trained(saved, METHODS[name], None)
        given = batches(dist.get_rank())
        for number, (x, y) in enumerate(given):
            whole(x, y)
            if number == 1:
                first.load_state_dict(whole.state_dict())
                saved.load_state_dict(through.state_dict())
            elif number > 1:
                first(x, y)
        found[name] = everything(through, whole) == everything(saved, first)
    return found


def test_a_saved_state_goes_on_as_if_nothing_had_been() -> None:
    assert run_ranks(2, restarted) == [dict.fromkeys(("dgc", "power"), True)] * 2


def clipped() -> list[tuple[list[Tensor], list[Tensor]]]:
    """What is kept, and the parameters, after a step of the graph and after one of DDP with its hook."""
    found = []
    x, y = batches(dist.get_rank())[0]
    for max_norm in LIMITS:
        method, net, other = graphopt.DGC(0.02, max_norm=max_norm), model(), model()
        with graphopt.kernels.use("stock"):
            step = graphopt.train_step(net, None, sgd(net.parameters()), compress=method, cost_model="roofline")
            step(x, y)
            hooked = nn.parallel.DistributedDataParallel(other)
            compression = graphopt.compress_ddp(hooked, method)
            hooked(x, y).backward()
            sgd(other.parameters()).step()
        mine, theirs = step.state_dict()["compression"]["state"], compression.state_dict()["state"]
        pairs = [(kept[key], theirs[name][key]) for name, kept in mine.items() for key in kept]
        pairs += zip(net.parameters(), other.parameters(), strict=True)
        found.append(([a.detach() for a, _ in pairs], [b.detach() for _, b in pairs]))
    return found


def test_the_graph_and_the_hook_of_ddp_clip_to_the_same_bits() -> None:
    for rank in run_ranks(2, clipped):
        for ours, theirs in rank:
            assert same_bits(ours, theirs)
        # smaller limits clip, the largest one does not: or nothing was compared
        assert [same_bits(ours, rank[-1][0]) for ours, _ in rank] == [False, False, False, True]


def resharded(saved: list[dict[str, Any]]) -> dict[str, Any]:
    """What three ranks go on with that two ranks saved, after two steps of their own."""
    net = model()
    step = trained(net, METHODS["dgc"], None)
    step.load_state_dict(saved)
    loaded = step.state_dict()["compression"]
    kept = {f"{n}: {k}": t.double() for n, held in loaded["state"].items() for k, t in held.items()}
    x, y = batches(dist.get_rank())[0]
    step(x, y)
    return {"steps": loaded["steps"], "kept": kept, "goes on": all(p.isfinite().all() for p in net.parameters())}


def saved_after_two_steps() -> dict[str, Any]:
    step = trained(model(), METHODS["dgc"], None)
    for x, y in batches(dist.get_rank())[:2]:
        step(x, y)
    return step.state_dict()


def test_another_number_of_ranks_shares_out_what_was_kept_back() -> None:
    two = run_ranks(2, saved_after_two_steps)
    three = run_ranks(3, resharded, two)
    assert all(each["goes on"] and each["steps"] == 2 for each in three)
    for key in three[0]["kept"]:
        name, _, kind = key.partition(": ")
        before = sum(one["compression"]["state"][name][kind].double() for one in two)
        after = sum(each["kept"][key] for each in three)
        assert before.any() and torch.allclose(after, before, rtol=0, atol=1e-6 * float(before.abs().max()))


def begun_anew() -> dict[str, Any]:
    """What a step keeps that goes back, behind a step, to its state of before."""
    step = trained(model(), METHODS["dgc"], None)
    beginning = step.state_dict()
    step(*batches(dist.get_rank())[0])
    assert step.state_dict()["compression"]["state"]
    step.load_state_dict(beginning)
    return step.state_dict()["compression"]["state"]


def test_a_state_of_before_the_first_step_keeps_nothing_back() -> None:
    assert run_ranks(2, begun_anew) == [{}, {}]


def uncompressed(saved: dict[str, Any] | None) -> dict[str, Any] | tuple[int, float]:
    """What a step without compression saves, or the steps and the sum that one goes on with that loads it."""
    step = trained(net := model(), None, None)
    if saved is not None:
        step.load_state_dict(saved)
    step(*batches(dist.get_rank())[0])
    state = step.state_dict()
    return state if saved is None else (state["compression"]["steps"], float(sum(p.sum() for p in net.parameters())))


def test_where_nothing_is_kept_back_one_ranks_state_does_for_any_number() -> None:
    saved = run_ranks(2, uncompressed, None)[1]
    three = run_ranks(3, uncompressed, saved)
    assert three == [three[0]] * 3 and three[0][0] == 2
    one = run_ranks(2, saved_after_two_steps)[0]
    with pytest.raises(RankError, match="compression state of 2 ranks, and now there are 3"):
        run_ranks(3, resharded, one)


def goes_on_as_chosen() -> tuple[list[str], str]:
    """The methods that "auto" goes on with are those that were saved, whatever it would choose now; others refuse."""
    step = trained(model(), METHODS["8-bit"], None)
    step(*batches(dist.get_rank())[0])
    state = step.state_dict()
    again = graphopt.train_step(net := model(), None, sgd(net.parameters()), compress="auto", cost_model="roofline")
    again.load_state_dict(state)
    again(*batches(dist.get_rank())[1])
    methods = again.state_dict()["compression"]["methods"]
    assert methods == state["compression"]["methods"]
    with pytest.raises(graphopt.UsageError) as error:
        trained(model(), METHODS["power"], None).load_state_dict(state)
    return sorted({str(m and m["method"]) for m in methods.values()}), str(error.value)


def test_auto_goes_on_with_what_was_saved() -> None:
    for methods, error in run_ranks(2, goes_on_as_chosen):
        assert methods == ["EightBit"] and "compressed in other ways" in error


def peaks() -> dict[str, tuple[int, int]]:
    """Of each method: bytes predicted and measured."""
    found = {}
    for name, method in METHODS.items():
        net = model()
        (x, y), *_ = batches(dist.get_rank())
        step = graphopt.train_step(net, None, sgd(net.parameters()), compress=method, example_inputs=(x, y))
        step(x, y), step(x, y)  # the second one after DGC's warm-up has a graph of its own
        found[name] = step.plan.peak_bytes, measured_bytes(step, (x, y))
    return found


def measured_bytes(step: graphopt.TrainStep, batch: tuple[Tensor, Tensor]) -> int:
    return settled_peak_bytes(lambda: step(*batch), resident(step, (batch, {})))


@pytest.mark.fast(1)
@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_what_methods_take_is_in_the_plan(world: int) -> None:
    for found in run_ranks(world, peaks):
        print(found)
        assert {name: both for name, both in found.items() if both[1] > both[0]} == {}

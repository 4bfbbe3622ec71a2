"""Ranks that hold shards of one model, and copies of it, train what eager and one process train."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn, optim

import graphopt
from graphopt.device.storages import local_of
from tests.support.ranks import run_ranks
from tests.support.tensor_parallel import (
    BLOCKS,
    WIDTH,
    Make,
    global_batch,
    loss_of,
    mesh_of,
    own_batch,
    parallel,
    shards_of,
    whole,
    wholes_of,
)

STEPS = 4


def adamw(parameters: list[nn.Parameter]) -> optim.Optimizer:
    return optim.AdamW(parameters, lr=1e-2)


def adamw_fused(parameters: list[nn.Parameter]) -> optim.Optimizer:
    return optim.AdamW(parameters, lr=1e-2, fused=True)


def momentum(parameters: list[nn.Parameter]) -> optim.Optimizer:
    return optim.SGD(parameters, lr=0.1, momentum=0.9)


def adagrad(parameters: list[nn.Parameter]) -> optim.Optimizer:
    return optim.Adagrad(parameters, lr=0.01)


def two_groups(parameters: list[nn.Parameter]) -> optim.Optimizer:
    """The second group has what all ranks hold whole, and nothing else."""
    wholes = [p for i, p in enumerate(parameters) if i % 6 in (0, 1, 5)]  # of each block the norm's, and the last bias
    shards = [p for i, p in enumerate(parameters) if i % 6 in (2, 3, 4)]
    return optim.SGD([{"params": shards}, {"params": wholes}], lr=0.1)


def as_eager(name: str) -> dict[str, list[bool]]:
    """Whether losses and shards have the bits of torch's own loop, by optimizer and way."""
    mesh, found = mesh_of(dist.get_world_size()), {}
    ways = [(momentum, False), (momentum, True), (adagrad, False)]
    # torch's fused AdamW, which the stock kernels are, takes no plain tensors among DTensors
    for make, in_backward in ways if name == "mlp" else [*ways, (adamw_fused, False)]:
        eager, model = parallel(name, mesh["tp"]), parallel(name, mesh["tp"])
        optimizer = make(list(eager.parameters()))
        options: dict[str, Any] = {"cost_model": "roofline", "update_in_backward": in_backward}
        step = graphopt.train_step(model, loss_of(name), make(list(model.parameters())), **options)
        same = []
        with graphopt.kernels.use("stock"):
            for i in range(STEPS):
                inputs, targets = own_batch(name, i, mesh)
                loss = loss_of(name)(eager(inputs), targets)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                same.append(float(step(inputs, targets).loss) == float(loss.detach()))
        same += list(map(torch.equal, shards_of(eager), shards_of(model)))
        found[f"{make.__name__}, in the backward: {in_backward}"] = same
    return found


def test_it_has_the_bits_of_eager_tensor_parallelism() -> None:
    for name in ("mlp", "llama"):
        for found in run_ranks(2, as_eager, name):
            for what, same in found.items():
                assert all(same), (name, what, same)


def frozen(model: Any) -> None:
    """Of a shard, and of what all ranks have."""
    model[1].up.weight.requires_grad_(False)
    model[0].norm.weight.requires_grad_(False)


def tied(model: Any) -> None:
    model.head.weight = model.embedding.weight


def half(_model: Any) -> None:
    """Forward and loss run in bfloat16."""


def awkward() -> dict[str, list[bool]]:
    """The same for models with frozen and tied shards, under autocast, and with parameters written between steps."""
    mesh, found = mesh_of(2), {}
    for name, change in (("mlp", frozen), ("llama", tied), ("mlp", half)):
        models = [parallel(name, mesh["tp"]) for _ in range(2)]
        for model in models:
            change(model)
        made = [momentum([p for p in model.parameters() if p.requires_grad]) for model in models]
        (eager, model), (optimizer, own) = models, made
        options: dict[str, Any] = {"cost_model": "roofline", "autocast": torch.bfloat16 if change is half else None}
        step, same = graphopt.train_step(model, loss_of(name), own, **options), []
        with graphopt.kernels.use("stock"):
            for i in range(STEPS):
                inputs, targets = own_batch(name, i, mesh)
                with torch.autocast("cpu", torch.bfloat16, enabled=change is half):
                    loss = loss_of(name)(eager(inputs), targets)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                same.append(float(step(inputs, targets).loss) == float(loss.detach()))
                with torch.no_grad():
                    for each in (*eager.parameters(), *model.parameters()):
                        each.mul_(0.9)
        found[change.__name__] = [*same, *map(torch.equal, shards_of(eager), shards_of(model))]
    return found


@pytest.mark.slow
def test_awkward_models_have_the_bits_of_eager() -> None:
    for found in run_ranks(2, awkward):
        assert all(all(same) for same in found.values()), found


#: Options of `train_step`, and an optimizer.
CASES: dict[str, tuple[Make, dict[str, Any]]] = {
    "norm": (momentum, {"clip": graphopt.ClipNorm(0.05)}),
    "largest": (momentum, {"clip": graphopt.ClipNorm(0.01, float("inf"))}),
    "groups": (two_groups, {"clip": graphopt.ClipNorm(0.05, per_group=True)}),
    "value": (momentum, {"clip": graphopt.ClipValue(1e-3)}),
    "everything": (
        adamw,
        {
            "accumulate": 2,
            "clip": graphopt.ClipNorm(0.05),
            "loss_scale": graphopt.DynamicLossScale(2.0**10, interval=2),
        },
    ),
    "the optimizer's own step": (adagrad, {"clip": graphopt.ClipNorm(0.05, 3.0)}),
}


def trained_whole(name: str, case: str, dtype: torch.dtype) -> tuple[list[float], list[Any], list[Tensor]]:
    """Losses, norms and parameters of one process's plain loop on the global batches."""
    make, options = CASES[case]
    model, clip = whole(name).to(dtype), options.get("clip")
    optimizer, losses, norms = make(list(model.parameters())), [], []
    for i in range(STEPS):
        inputs, targets = (t.to(dtype) if t.is_floating_point() else t for t in global_batch(name, i))
        loss = loss_of(name)(model(inputs), targets)
        loss.backward()
        if isinstance(clip, graphopt.ClipNorm):
            groups = [group["params"] for group in optimizer.param_groups]
            groups = groups if clip.per_group else [list(model.parameters())]
            taken = [nn.utils.clip_grad_norm_(some, clip.max_norm, clip.norm_type) for some in groups]
            norms.append([float(norm) for norm in taken])
        elif isinstance(clip, graphopt.ClipValue):
            nn.utils.clip_grad_value_(model.parameters(), clip.value)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses, norms, [parameter.detach() for parameter in model.parameters()]


def as_one_process(name: str, shards: int, cases: list[str]) -> dict[str, tuple[list[float], list[Any], float, float]]:
    """By case: losses and norms, and how far parameters are from those of one process in float64, and that in float32.

    All relative to what they should be.
    """
    mesh, found = mesh_of(shards), {}
    for case in cases:
        make, options = CASES[case]
        losses64, norms64, exact = trained_whole(name, case, torch.float64)
        _, _, rounded = trained_whole(name, case, torch.float32)
        model = parallel(name, mesh["tp"])
        how: dict[str, Any] = {"cost_model": "roofline", "group": mesh["dp"].get_group(), **options}
        step = graphopt.train_step(model, loss_of(name), make(list(model.parameters())), **how)
        results = [step(*own_batch(name, i, mesh)) for i in range(STEPS)]
        losses = [float(result.loss) / loss for result, loss in zip(results, losses64, strict=True)]
        norms = [
            (result.grad_norm.reshape(-1).double() / torch.tensor(norm, dtype=torch.float64)).tolist()
            for result, norm in zip(results, norms64, strict=bool(norms64))
            if result.grad_norm is not None
        ]
        found[case] = losses, norms, _apart(wholes_of(model), exact), _apart(rounded, exact)
    return found


def _apart(found: list[Tensor], exact: list[Tensor]) -> float:
    return max(float((a.double() - b).abs().max()) for a, b in zip(found, exact, strict=True))


def check_one_process(every: list[dict[str, tuple[list[float], list[Any], float, float]]]) -> None:
    for case, (losses, norms, apart, rounded) in every[0].items():
        assert all(abs(each - 1) < 1e-6 for each in losses), (case, losses)
        assert all(abs(norm - 1) < 2e-6 for each in norms for norm in each), (case, norms)
        assert apart < 8 * rounded, (case, apart, rounded)
    assert all(each == every[0] for each in every)


@pytest.mark.slow
def test_copies_of_a_model_in_shards_train_as_one_process() -> None:
    check_one_process(run_ranks(4, as_one_process, "mlp", 2, ["largest", "groups", "the optimizer's own step"]))
    check_one_process(run_ranks(4, as_one_process, "llama", 2, ["everything"]))


def uneven_copies() -> tuple[list[float], list[float], float]:
    """Losses where the second copy has a quarter of the batch, those of one process, and how far parameters are."""
    mesh, losses = mesh_of(2), []
    expected, _, exact = trained_whole("mlp", "norm", torch.float64)
    model = parallel("mlp", mesh["tp"])
    make, options = CASES["norm"]
    how: dict[str, Any] = {"cost_model": "roofline", "group": mesh["dp"].get_group(), **options}
    step = graphopt.train_step(model, loss_of("mlp"), make(list(model.parameters())), **how)
    for i in range(STEPS):
        parts = [each.split([6, 2])[mesh["dp"].get_local_rank()] for each in global_batch("mlp", i)]
        losses.append(float(step(*parts).loss))
    return losses, expected, _apart(wholes_of(model), exact)


def test_copies_may_have_batches_of_uneven_sizes() -> None:
    for losses, expected, apart in run_ranks(4, uneven_copies):
        assert all(abs(one / other - 1) < 1e-6 for one, other in zip(losses, expected, strict=True))
        assert apart < 1e-6


def test_copies_alone_and_shards_alone_train_as_one_process() -> None:
    check_one_process(run_ranks(2, as_one_process, "mlp", 1, ["everything"]))
    check_one_process(run_ranks(2, as_one_process, "mlp", 2, ["norm", "value"]))


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (factor,) = ctx.saved_tensors
        return gradient * factor, None


class Overflowing(nn.Module):
    """The gradient of the first layer's weight overflows where the buffer is infinite; nothing else reads that."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.register_buffer("factor", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(_Scaled.apply(self.up(x), self.factor))


def overflowing(shards: int, which: int, options: dict[str, Any]) -> tuple[list[bool], bool, float]:
    """What was skipped where one rank's shard overflows in the second of three steps; whether it was left alone."""
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    mesh = mesh_of(shards)
    torch.manual_seed(0)
    model = Overflowing()
    parallelize_module(model, mesh["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
    optimizer = adamw(list(model.parameters()))
    how: dict[str, Any] = {"cost_model": "roofline", "group": mesh["dp"].get_group(), **options}
    step = graphopt.train_step(model, nn.functional.mse_loss, optimizer, **how)
    skipped = [step(*own_batch("mlp", 0, mesh)).skipped]
    before = shards_of(model)
    model.factor.fill_(float("inf") if dist.get_rank() == which else 1.0)
    skipped.append(step(*own_batch("mlp", 1, mesh)).skipped)
    untouched = all(map(torch.equal, before, shards_of(model)))
    model.factor.fill_(1.0)
    skipped.append(step(*own_batch("mlp", 2, mesh)).skipped)
    return skipped, untouched, step.loss_scale


def test_an_overflow_in_one_shard_skips_the_step_on_all_ranks() -> None:
    scaled: dict[str, Any] = {"loss_scale": graphopt.DynamicLossScale(2.0**10)}
    cases = [
        (2, 2, 1, scaled),
        (4, 2, 3, {**scaled, "clip": graphopt.ClipNorm(1.0), "accumulate": 2}),
    ]
    for world, shards, which, options in cases:
        for found in run_ranks(world, overflowing, shards, which, options):
            assert found == ([False, True, False], True, 2.0**9)


def test_the_shards_of_a_model_are_counted() -> None:
    for found in run_ranks(2, counted):
        assert found["parameters"] == found["shards"] and found["optimizer"] == found["state"] < 0.6 * found["wholes"]


def counted() -> dict[str, int]:
    model = parallel("mlp", mesh_of(2)["tp"])
    optimizer = momentum(list(model.parameters()))
    step = graphopt.train_step(model, loss_of("mlp"), optimizer, "1GiB", cost_model="roofline")
    step.plan_for(global_batch("mlp", 0), {})
    resident = step.plan.resident_bytes
    assert "shards over 2 ranks, 1 copy; what layers send is not counted" in str(step.report)
    step(*global_batch("mlp", 0))
    state = [local_of(each) for held in optimizer.state.values() for each in held.values()]
    assert len(state) == 6 * BLOCKS
    return {
        "parameters": resident["parameters"],
        "optimizer": resident["optimizer"],
        "shards": sum(each.nbytes for each in shards_of(model)),
        "state": sum(each.nbytes for each in state),
        "wholes": sum(p.numel() * p.element_size() for p in model.parameters()),
    }

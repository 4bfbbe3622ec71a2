"""`train_step()`: a model, its loss and its optimizer as one step inside a number of bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from torch import nn

from graphopt.base.units import UNLIMITED_BYTES, parse_bytes
from graphopt.capture.changing_sizes import Dynamic, dynamic_with, sizes_of
from graphopt.compression.choose import Auto
from graphopt.compression.link import link_of
from graphopt.compression.methods import Compression
from graphopt.device.ranks import ranks_of
from graphopt.device.snapshot import generators_kept
from graphopt.lower.compiler import Compiler
from graphopt.passes.window.clip import Clip, ClipNorm
from graphopt.passes.window.loss_scale import LossScale
from graphopt.plan.choice import Choice
from graphopt.plan.numerics import Numerics
from graphopt.plan.offload.where import offload_to
from graphopt.plan.resident import check_devices, device_total_bytes
from graphopt.run.model.loss_module import LossModule, as_call
from graphopt.run.model.request import OnExcess, check_on_excess
from graphopt.step.check_options import check_group, check_model_and_optimizer, check_options
from graphopt.step.memory import StepMemory
from graphopt.step.micro_batches.division import Accumulate
from graphopt.step.micro_batches.window import Weights
from graphopt.step.optimizer.backward_updates import BackwardUpdates
from graphopt.step.optimizer.state_elsewhere import state_elsewhere
from graphopt.step.options import (
    StepOptions,
    check_compiler_with,
    check_dynamic_with,
    check_offload_optimizer,
    check_shard_with,
)
from graphopt.step.ranks.failure import naming_absence
from graphopt.step.ranks.settings import spelled_option
from graphopt.step.ranks.start import check_unwrapped, raising_together, start_alike
from graphopt.step.sharding.share_out import Shared
from graphopt.step.sharding.state import check_unshared
from graphopt.step.step_parts import exchange_over, scattering, shared_out, viewed
from graphopt.step.tail_memory import TailOptions
from graphopt.step.tensor_parallel.check import check_dtensors_with
from graphopt.step.tensor_parallel.placement import has_dtensors, tensor_parallel_of
from graphopt.step.tensor_parallel.start import check_groups_agree
from graphopt.step.train_step import TrainStep

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@generators_kept()
def train_step(
    model: nn.Module,
    loss_fn: Callable[..., Any] | None,
    optimizer: torch.optim.Optimizer,
    mem_budget: int | float | str | None = None,
    *,
    example_inputs: Any = None,
    example_kwargs: Mapping[str, Any] | None = None,
    accumulate: Accumulate = 1,
    clip: Clip | None = None,
    loss_scale: LossScale | None = None,
    weights: Weights = None,
    compress: Compression | Auto | Literal["auto"] | None = None,
    group: dist.ProcessGroup | None = None,
    shard: bool | Literal["optimizer", "gradients"] | DeviceMesh = False,
    autocast: torch.dtype | None = None,
    masters: bool = False,
    update_in_backward: bool | Literal["auto"] = "auto",
    lr_scheduler: Any = None,
    planner: str = "auto",
    cost_model: str = "auto",
    reserve: int | float | str = 0,
    plan_seconds: float = 0.0,
    on_excess: OnExcess = "correct",
    compiler: Compiler = "eager",
    numerics: Numerics = "bitwise",
    dynamic: Dynamic = None,
    offload: str | Path | None = None,
    offload_optimizer: str | Path | None = None,
) -> TrainStep:
    """One optimizer step on one global batch as one graph: forward, loss, backward, gradient work, update.

    `step(*batch)` computes `loss_fn(model(*batch[:-1]), batch[-1])`, or takes the loss that the model returns where
    `loss_fn` is None; the model, its parameters and the optimizer's state stay the user's own. `mem_budget` counts
    everything on the device while a step runs, optimizer state included (None: no limit).

    `accumulate` cuts the first batch into that many micro-batches, and later ones into pieces of that size; gradients
    add up in float32. "auto" chooses size and plan of the micro-batch together, once, with the first batch: the
    fastest in the budget. The mean is over what was really there, by rows, or by `weights`: "tokens", or a function
    of a micro-batch's inputs. `clip` is a ClipNorm or ClipValue, `loss_scale` a ConstantLossScale or
    DynamicLossScale. `autocast` is the dtype of forward and loss. With `masters` the optimizer's half parameters are
    replaced by float32 masters. `lr_scheduler` is stepped after each update that was not skipped. With
    `update_in_backward` each parameter is updated as soon as its gradient exists, so that gradients never all live:
    for SGD, Adam and AdamW, one micro-batch, no loss scale and no norm to clip by. "auto" does so in one process where
    nothing fits otherwise. `offload_optimizer` names, as `offload` does, where state of SGD, Adam and AdamW lies: it
    is in no budget, and moved in blocks beside the update.

    `planner`, `cost_model`, `reserve`, `plan_seconds`, `compiler`, `numerics`, `dynamic`, `offload` and
    `example_inputs` are those of `optimize()`; several processes capture each set of shapes by itself, and take no
    `dynamic=`.

    Each step is measured. What one took above its plan is told of, once for each cause, and is counted from the next
    call on; with `on_excess="raise"` it is a BudgetError, raised when the step is done and the parameters are updated.

    Where torch.distributed is initialized with more than one process, they train together: each gives its own part
    of every global batch, and all call the step (and `train_step`, which takes parameters and buffers from the first
    rank) equally often. `group` names others than all processes; in a group of one, a process trains alone. Where
    parameters are DTensors, each rank trains its shards, and `group` has the ranks that hold the same ones. Means
    and norms are those of the global batch; buffers are each rank's own afterwards. With a loss scale or compressed
    gradients an overflow on any rank skips the step on all; without either nobody looks for one, and a NaN is in all
    ranks' parameters, as it is in one process (ConstantLossScale(1.0) looks, and scales nothing). Optimizer, options,
    loaded state and program must be alike on all ranks, which is compared before each step. `compress` is how
    gradients travel: HalfCast, EightBit, QSGD, TopK, DGC, Threshold or PowerSGD; "auto", or Auto, lets measurements
    choose. With `shard` each rank keeps its rows of parameters, gradients and optimizer state, and what is gathered is
    planned like all else; the model is whole inside of `with step.whole_model():` only. True shares out over all ranks,
    a mesh of two dimensions (copies, rows) over those of its second one; "gradients" leaves parameters whole and shares
    out the rest; `compress` is EightBit, HalfCast or QSGD then, or None. "optimizer" shares out the state alone, and
    trains with the bits, and with all that `compress` takes, of no `shard`. In one process it changes nothing.

    Only what the optimizer holds is trained: gradients of other parameters are not computed, and no `.grad` is
    set. Raises BudgetError, CaptureError and UsageError as `optimize()` does, at once with `example_inputs`, else
    at the first batch; a model that breaks into several graphs is refused. What one rank raises before it sends
    anything is raised on all. Where ranks train different things all of them raise UsageError, or PlanMismatchError
    for different programs; RankError where one dies, hangs or does not come.
    """
    arguments = locals()
    check_group(group)
    is_parallel = has_dtensors(model)
    # all that train together, where gradients are summed over some of them
    ranks = ranks_of(None if is_parallel else group)
    with naming_absence(ranks, "train_step()"):
        with raising_together(ranks):
            check_model_and_optimizer(model, optimizer)
            check_options(arguments)
            check_on_excess(on_excess)
            compress = Auto() if compress == "auto" else compress
            options = StepOptions(accumulate, clip, loss_scale, weights, update_in_backward, compress, on_excess)
            dynamic = dynamic_with(offload, dynamic)
            device = next(iter(model.parameters())).device
            to = offload_to(offload, device)
            choice = Choice(planner, cost_model, None, plan_seconds, compiler, numerics, to)
            args, kwargs = as_call(example_inputs, example_kwargs)
            check_unwrapped(model)
            check_unshared(optimizer)
            parallel = tensor_parallel_of(model, group) if is_parallel and ranks is not None else None
            if is_parallel:
                check_dtensors_with(optimizer, arguments)
            check_devices(model, (args, kwargs))
        if ranks is not None:
            if parallel is not None:
                parallel = check_groups_agree(ranks, parallel)
            copies = ranks if parallel is None else parallel.copies
            start_alike(ranks, model, shard=spelled_option(shard), copies=copies)
        link = link_of(ranks, device) if ranks and shard else None
    scaled = loss_scale is not None
    with ExitStack() as undo:
        with naming_absence(ranks, "train_step()"), raising_together(ranks):
            sharded: Shared | None = None
            if ranks is not None and link is not None:
                check_shard_with(shard, options, optimizer, choice)
                sharded = shared_out(undo, shard, model, optimizer, ranks, link)
            away = state_elsewhere(offload_optimizer, device)
            view = viewed(undo, model, optimizer, sharded, away, masters=masters)
            exchange = exchange_over(ranks, view, compress, sharded, parallel, scaled=scaled)
            check_offload_optimizer(view)
            check_compiler_with(compiler, has_ranks=ranks is not None)
            check_dynamic_with(dynamic, compiler, has_ranks=ranks is not None)
            sums = exchange is not None and exchange.summing is not None
            scatters = scattering(sharded) is not None
            in_backward = BackwardUpdates(options, view, choice, has_ranks=sums, is_sharded=scatters)
            in_backward.check()
            total = device_total_bytes(device)
            budget_bytes = UNLIMITED_BYTES if mem_budget is None else parse_bytes(mem_budget, total)
            reserve_bytes = parse_bytes(reserve, total) if reserve else 0
        memory = StepMemory(
            model,
            view,
            choice,
            budget_bytes,
            reserve_bytes,
            tail=TailOptions(scaled=scaled, normed=isinstance(clip, ClipNorm)),
            **({"kept_bytes": exchange.kept_bytes} if exchange else {}),
        )
        module = LossModule(model, loss_fn, device.type, autocast)
        # kernels are compiled for each shape by itself, and ranks compare what they run, whose shapes may differ
        sizes = sizes_of(dynamic if compiler == "eager" and ranks is None else False)
        step = TrainStep(model, module, memory, options, in_backward, sizes, lr_scheduler, exchange, sharded)
        if args or kwargs:
            step.plan_for(args, kwargs)
        undo.pop_all()
    return step

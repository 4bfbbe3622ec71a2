"""Compression for users who keep their own loop: a communication hook for DistributedDataParallel."""

# DDP looks at the hook's annotations as they are: no `from __future__ import annotations` here

import time
from functools import partial
from typing import Literal

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import GradBucket
from torch.nn.parallel import DistributedDataParallel

from graphopt.base.errors import UsageError
from graphopt.compression.choose import Auto
from graphopt.compression.methods import Compression
from graphopt.ddp.ddp_compression import DdpCompression
from graphopt.ddp.ddp_step import Arrival
from graphopt.device.after_backward import after_backward
from graphopt.device.ranks import Ranks, ranks_of
from graphopt.kernels.layout import is_dense
from graphopt.step.ranks.failure import naming_absence

GradientFuture = torch.futures.Future[torch.Tensor]


def compress_ddp(
    ddp_model: DistributedDataParallel,
    method: Compression | Auto | Literal["auto"],
    *,
    scaler: torch.amp.GradScaler | None = None,
) -> DdpCompression:
    """Compress what a DDP model's processes send each other, from its next backward on.

    All ranks call it, before their first backward. The gradients become the mean over ranks of what the method
    leaves of them; parameters too small for the method travel whole. With a `scaler` pass it, so that what is kept
    back between steps is in true units and outlives changes of the scale. Where the gradient of any rank is not
    finite, all gradients of all ranks are NaN, so that every GradScaler skips the step, and nothing that is kept
    back changes. DGC takes the place of the optimizer's momentum, which must be 0. "auto" (`graphopt.Auto()`) sends
    gradients whole until DDP has its final buckets, then measures the network, chooses, and goes back to whole
    gradients where steps became no shorter.

    What goes wrong in a step is raised by `backward()` as it is: a RankError where another rank was lost.

    Works with `no_sync`, `find_unused_parameters`, `static_graph`, `gradient_as_bucket_view` and rebuilt buckets.
    With one process alone it does nothing. Raises UsageError where the model is not a DDP model, has a hook
    already, or has sparse gradients (at the first backward).
    """
    if not isinstance(ddp_model, DistributedDataParallel):
        raise UsageError(f"compress_ddp takes a DistributedDataParallel model, not a {type(ddp_model).__name__}")
    if ddp_model._comm_hooks:
        raise UsageError("compress_ddp: this DDP model has a communication hook already, and DDP takes one")
    ranks = ranks_of(ddp_model.process_group)
    parameters = ddp_model.module.named_parameters()
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in parameters if parameter.requires_grad}
    how = Auto() if method == "auto" else method
    with naming_absence(ranks, "compress_ddp()"):
        own = None if ranks is None else _own_group(ranks, ddp_model)
    compression = DdpCompression(how, names, own)
    if ranks is not None:
        ddp_model.register_comm_hook((compression, scaler), _hook)
    return compression


def _hook(
    compression_and_scaler: tuple[DdpCompression, torch.amp.GradScaler | None], bucket: GradBucket
) -> GradientFuture:
    compression, scaler = compression_and_scaler
    buffer = bucket.buffer()
    if buffer.layout != torch.strided:
        raise UsageError("compress_ddp: sparse gradients are not compressed; use dense ones (sparse=False)")
    parameters = bucket.parameters()
    names = tuple(compression.names[parameter] for parameter in parameters)
    scale = float(scaler.get_scale()) if scaler is not None and scaler.is_enabled() else 1.0
    gradients = [_laid_out(g, parameter) for g, parameter in zip(bucket.gradients(), parameters, strict=True)]
    arrival = Arrival(names, buffer, gradients, bucket.is_last(), time.monotonic())
    if arrival.is_last:
        # what a hook's future raises would arrive as a RuntimeError with the error in its text; DDP registers its own
        # end behind this hook's call, so that what registers itself when these run comes after it
        after_backward(partial(after_backward, compression.raise_failure))
    return compression.submit(arrival, scale)


def _laid_out(gradient: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """As DDP writes it into its buffer, in the parameter's strides; what torch 2.13 hands to hooks ignores these."""
    return gradient.as_strided(parameter.shape, parameter.stride()) if is_dense(parameter) else gradient


def _own_group(ranks: Ranks, ddp_model: DistributedDataParallel) -> Ranks:
    """The same ranks in a group of their own, so that what DDP itself sends meanwhile cannot come between."""
    device = next(ddp_model.parameters()).device
    timeout = ranks.group._get_backend(device).options._timeout
    members = dist.get_process_group_ranks(ranks.group)
    group = dist.new_group(members, timeout=timeout, backend=ranks.backend, use_local_synchronization=True)
    own = ranks_of(group)
    assert own is not None
    return own

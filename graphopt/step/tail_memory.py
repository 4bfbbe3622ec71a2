"""What the end of a training step takes: gradients that are alive, and the scratch of norm and update."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from graphopt.base.errors import UsageError
from graphopt.base.rounding import ceil_div
from graphopt.cost_models.model_state import float32_bytes, nbytes
from graphopt.cost_models.rehearsal import like, peak_bytes_of, rehearse_step
from graphopt.device.dtypes import HALF
from graphopt.device.storages import allocated_bytes
from graphopt.kernels.build import own_cpu_kernels, own_cuda_kernels
from graphopt.kernels.layout import is_dense
from graphopt.kernels.pieces import PIECE_ELEMENTS, table_bytes
from graphopt.kernels.sharding.message import packed_bytes
from graphopt.kernels.streaming.blocks import slots_bytes
from graphopt.kernels.tail import definition_update
from graphopt.passes.window.update import NUMBERS, STATE, GroupUpdate
from graphopt.step.optimizer.optimizer_view import OptimizerView

Dtypes = Mapping[str, torch.dtype]
_NORM_CHUNK = 65536
"""Elements of which `torch._foreach_norm` on CUDA keeps one sum (ATen/native/cuda/ForeachReduceOp.cu)."""
_SCALARS = 16
"""Single numbers on the way from sums to a norm, a factor, and whether something overflowed."""


@dataclass(frozen=True)
class TailOptions:
    """What is done with gradients before the update: `scaled` by a loss scale, their norm taken."""

    scaled: bool = False
    normed: bool = False


def kept_table_bytes(parameters: Sequence[torch.Tensor]) -> int:
    """What our kernels keep on CUDA from the first step on, to find all gradients in one launch."""
    if not parameters or not own_cuda_kernels(parameters[0].device):
        return 0
    return table_bytes([parameter.numel() for parameter in parameters])


def tail_bytes(
    view: OptimizerView, gradients: Dtypes, *, summed: bool, options: TailOptions, run_ops: bool
) -> dict[str, int]:
    """Bytes by kind of what is alive in the tail beside what is resident.

    `gradients` are the dtypes of those that there are, by parameter; where they are `summed` they are
    resident already. With `run_ops`, ops of the optimizer's step that have scratch are run once for it. Empty where
    nothing is left to update.
    """
    if not gradients:
        return {}
    held = {name: nbytes(view.stepped(name), dtype) for name, dtype in gradients.items()}
    norm_bytes = _norm_bytes(view, gradients) if options.scaled or options.normed else 0
    if view.kind == "step":
        update_bytes = _handed_bytes(view, gradients, held, summed) + _step_bytes(view, run_ops)
    else:
        update_bytes = max(_fused_bytes(view, group, gradients, options) for group in view.groups())
    shared_bytes = packed_bytes(view.parameters[name] for name in gradients) if view.rows else 0
    scratch_bytes = max(norm_bytes, update_bytes, shared_bytes)
    kinds = {"gradients": 0 if summed else sum(held.values()), "update workspace": scratch_bytes}
    return {kind: size for kind, size in kinds.items() if size}


def _norm_bytes(view: OptimizerView, gradients: Dtypes) -> int:
    """What torch's norms take: on CUDA a number a tensor and one a chunk of the largest, for each tensor.

    On a CPU a half tensor is converted to float32 first; one at a time.
    """
    parameters = [view.parameters[name] for name in gradients]
    device = parameters[0].device
    if device.type == "cuda":
        chunks = max(ceil_div(p.numel(), _NORM_CHUNK) for p in parameters)
        count = len(parameters)
        if own_cuda_kernels(device):  # a double for each piece, and all of them in one tensor again
            pieces = sum(ceil_div(p.numel(), PIECE_ELEMENTS) for p in parameters)
            return 2 * allocated_bytes(8 * pieces, device) + _SCALARS * allocated_bytes(8, device)
        return allocated_bytes(4 * count * chunks, device) + (count + 1) * allocated_bytes(4, device) + 4 * count
    half = [view.parameters[name] for name, dtype in gradients.items() if dtype in HALF]
    return max((float32_bytes(p) for p in half if p.device.type == "cpu" and not own_cpu_kernels(p.device)), default=0)


def _handed_bytes(view: OptimizerView, gradients: Dtypes, held: Mapping[str, int], summed: bool) -> int:
    """What it takes to hand the optimizer gradients of its own parameters' dtypes; those returned go as theirs come."""
    made = {name: nbytes(view.stepped(name)) for name, dtype in gradients.items() if view.stepped(name).dtype != dtype}
    return sum(made.values()) - (0 if summed else sum(held[name] for name in made))


def _step_bytes(view: OptimizerView, run_ops: bool) -> int:
    """What the optimizer's own step takes. Where only a real one can tell, its state is known, but not this."""
    try:
        return rehearse_step(view.optimizer, run_ops=run_ops).workspace_bytes
    except UsageError:
        warnings.warn(
            f"graphopt: what a step of {type(view.optimizer).__name__} takes beside its state cannot be known; it is "
            "not in the plan, so keep a reserve",
            stacklevel=2,
        )
        return 0


def _fused_bytes(view: OptimizerView, group: GroupUpdate, gradients: Dtypes, options: TailOptions) -> int:
    parts = group.alike([name for name in group.parameters if name in gradients])
    return max((_one_update_bytes(view, group, some, gradients, options) for some in parts), default=0)


def _one_update_bytes(
    view: OptimizerView, group: GroupUpdate, names: Sequence[str], gradients: Dtypes, options: TailOptions
) -> int:
    """What one op of the graph allocates: torch's kernels, as ours read float32 and half gradients as they are."""
    own_bytes = _blocks_bytes(view, group, names) if names and names[0] in group.elsewhere else 0
    if names and _own_kernels(view.stepped(names[0]).device, group.kind, len(names)):
        left = [name for name in names if not _is_taken(view.stepped(name))]
        own_bytes += _own_update_bytes(len(names) - len(left), view.stepped(names[0]).device)
        names = left
    if not names:
        return own_bytes
    device = view.stepped(names[0]).device
    params = [like(view.stepped(name)) for name in names]
    grads = [like(param, gradients[name]) for name, param in zip(names, params, strict=True)]
    copies = [like(view.rounded(name)) for name in names if name in group.masters]
    states = {
        f"{key}s": [_state(key, param) for param in params] if key in group.state else [] for key in STATE[group.kind]
    }
    number = torch.empty((), device="meta")
    scale = {"inverse_scale": number} if options.scaled else {}
    if scale and device.type != "cpu":  # where a skipped step ends before it starts
        scale["found_inf"] = number
    known = [*params, *grads, *copies, number, *(tensor for held in states.values() for tensor in held)]
    update = definition_update.adam_ if group.kind == "adam" else definition_update.sgd_
    arguments = {"params": params, "gradients": grads, **states, "copies": copies}
    numbers = dict.fromkeys(NUMBERS[group.kind], 0.5)
    stock_bytes = peak_bytes_of(
        lambda: update(**arguments, **scale, **numbers, **dict(group.flags)),  # type: ignore[arg-type]
        known,
        device,
    )
    return max(own_bytes, stock_bytes) if names[0] not in group.elsewhere else own_bytes + stock_bytes


def _blocks_bytes(view: OptimizerView, group: GroupUpdate, names: Sequence[str]) -> int:
    """What blocks of state take that come and go."""
    kinds = sum(key != "step" for key in group.state)
    return slots_bytes([view.stepped(name) for name in names], kinds, group.block_elements)


def _own_update_bytes(count: int, device: torch.device) -> int:
    """On CUDA a few numbers for each tensor, made of its count of steps; on a CPU nothing."""
    if device.type != "cuda":
        return 0
    return 8 * allocated_bytes(8 * count, device) + _SCALARS * allocated_bytes(8, device)


def _own_kernels(device: torch.device, kind: str, count: int) -> bool:
    """Whether our own kernels update so many parameters; on CUDA only Adam's, and more than one."""
    return own_cpu_kernels(device) or (kind == "adam" and count > 1 and own_cuda_kernels(device))


def _is_taken(stepped: torch.Tensor) -> bool:
    """Whether our own kernels update it; the rest is left to torch's."""
    return stepped.dtype == torch.float32 and is_dense(stepped)


def _state(key: str, param: torch.Tensor) -> torch.Tensor:
    return torch.empty((), device="meta") if key == "step" else like(param)

"""Rehearsal: what code allocates on a device, found by running it on tensors that have no memory.

Tensors stand in for themselves on PyTorch's meta device, and a dispatch mode adds up the storages that
come and go. Scratch inside an op is not seen: matrix products and decompositions are noted, to be run for it.
"""

from __future__ import annotations

import copy
import weakref
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.optimizer import _default_to_fused_or_foreach
from torch.utils._python_dispatch import TorchDispatchMode

from graphopt.base.errors import UsageError
from graphopt.cost_models.device_speed import at_hand
from graphopt.cost_models.scratch import scratch_bytes
from graphopt.cost_models.signature import Signature, call_signature
from graphopt.device.dtypes import HALF
from graphopt.device.storages import allocated_bytes, local_of, tensors_in
from graphopt.device.timing import plain_execution

#: Of the ops that optimizers use, those that have scratch: bfloat16's products on a CPU, for one, which Muon takes.
_WITH_SCRATCH = ("mm", "addmm", "bmm", "baddbmm", "mv", "addmv")

Pairs = list[tuple[torch.Tensor, torch.nn.Parameter]]


class LiveBytes(TorchDispatchMode):
    """Counts what is made inside it of meta tensors, as the allocator of `device` would hand it out.

    `peak_bytes` is the most there was at once, `known` tensors not counted. Numbers that are read from a
    tensor without memory are 1.
    """

    def __init__(self, known: Iterable[torch.Tensor], device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak_bytes = 0
        self._device = device
        self._known = {tensor.untyped_storage()._cdata: 0 for tensor in known}
        self._live_bytes = 0
        self._with_scratch: dict[str, tuple[Signature, int]] = {}

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(tensor.is_meta for tensor in tensors_in((args, kwargs))):
            if func is torch.ops.aten._local_scalar_dense.default:
                return 1.0
            if not func._schema.returns:  # it writes, and does no more; not all such ops take meta tensors
                return None
        made = func(*args, **(kwargs or {}))
        for tensor in tensors_in(made):
            if tensor.is_meta:
                self._add(tensor.untyped_storage())
        if _has_scratch(func):
            self._note(func, args, kwargs, made)
        return made

    def peak_with_scratch_bytes(self) -> int:
        """The peak with what ops take inside of them, found by running each once on the device."""
        calls = [call for call, _ in self._with_scratch.values()]
        if not calls:
            return self.peak_bytes
        with plain_execution(self._device):
            scratch = scratch_bytes(calls, self._device)
        found = [live + scratch[key][0] for key, (_, live) in self._with_scratch.items() if key in scratch]
        return max(self.peak_bytes, *found)

    def _note(self, func: Any, args: Any, kwargs: Any, made: Any) -> None:
        """Remember a call with the most bytes that were alive at its end."""
        call = call_signature(func, args, kwargs, made, self._device)
        if call is not None:
            before = self._with_scratch.get(call.key, (call, 0))[1]
            self._with_scratch[call.key] = call, max(before, self._live_bytes)

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._known:
            self._known[key] = allocated_bytes(storage.nbytes(), self._device)
            self._live_bytes += self._known[key]
            self.peak_bytes = max(self.peak_bytes, self._live_bytes)
            weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self._live_bytes -= self._known.pop(key)


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """One step of an optimizer: bytes of the state that it then holds, and the most it takes beside that meanwhile."""

    state_bytes: int
    workspace_bytes: int


def rehearse_step(
    optimizer: torch.optim.Optimizer,
    *,
    masters: bool = False,
    learns: Callable[[torch.Tensor], bool] = lambda parameter: parameter.requires_grad,
    run_ops: bool = False,
) -> Rehearsed:
    """Let a stand-in of `optimizer` step, with a gradient for every parameter that `learns`; nothing is changed.

    Parameters and gradients, which are of the parameters' dtypes, are not counted. With `masters` it steps on
    float32 copies of half parameters. With `run_ops`, ops that have scratch are run once on the parameters' device
    for it, on tensors like theirs. What a fused step saves is not known. Raises UsageError where the
    step cannot be taken without the real numbers.
    """
    stand_in, pairs = _stand_in(optimizer, masters, learns)
    device = next((real.device for real, _ in pairs), torch.device("cpu"))
    held_before = _held_bytes(stand_in, pairs)
    known = [t for _, one in pairs for t in (one, one.grad, *tensors_in(stand_in.state.get(one))) if t is not None]
    try:
        with LiveBytes(known, device) as count:
            type(optimizer).step(stand_in)
        peak_bytes = count.peak_with_scratch_bytes() if run_ops and at_hand(device) else count.peak_bytes
    except Exception as error:  # whatever a user's own optimizer may raise
        raise UsageError(
            f"the state of {type(optimizer).__name__} cannot be known before its first step ({error}): run one step "
            "before planning, or leave the optimizer out and name its bytes with reserve="
        ) from error
    state_bytes = _held_bytes(stand_in, pairs)
    # what became state was counted when it was made
    return Rehearsed(state_bytes, max(peak_bytes - (state_bytes - held_before), 0))


def peak_bytes_of(run: Callable[[], object], known: Iterable[torch.Tensor], device: torch.device) -> int:
    """The most bytes alive at once of the meta tensors that `run` makes beside `known` ones."""
    with LiveBytes(known, device) as count:
        run()
    return int(count.peak_bytes)


def _has_scratch(op: Any) -> bool:
    name = str(getattr(op, "overloadpacket", "")).removeprefix("aten.")
    return name in _WITH_SCRATCH or name.lstrip("_").startswith("linalg_")


def like(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A tensor of the same layout that has no memory; of a DTensor this rank's shard."""
    shard = local_of(tensor)
    return torch.empty_strided(shard.shape, shard.stride(), dtype=dtype or tensor.dtype, device="meta")


def _stand_in(
    optimizer: torch.optim.Optimizer, masters: bool, learns: Callable[[torch.Tensor], bool]
) -> tuple[Any, Pairs]:
    """A copy whose groups and state hold meta tensors, and its parameters beside the real ones."""
    made: Any = object.__new__(type(optimizer))
    made.__dict__.update(optimizer.__dict__)
    made.__dict__.pop("step", None)  # an LR scheduler's wrapper around the real one
    made._optimizer_step_pre_hooks, made._optimizer_step_post_hooks = OrderedDict(), OrderedDict()
    made.state, made.param_groups = defaultdict(dict), []
    pairs: Pairs = []
    for group in optimizer.param_groups:
        for real in group["params"]:
            dtype = torch.float32 if masters and real.dtype in HALF else real.dtype
            one = torch.nn.Parameter(like(real, dtype), requires_grad=real.requires_grad)
            one.grad = like(real, dtype) if learns(real) else None
            if real in optimizer.state:
                made.state[one] = {key: _state_like(value, real) for key, value in optimizer.state[real].items()}
            pairs.append((real, one))
        made.param_groups.append({**group, "params": [one for _, one in pairs[-len(group["params"]) :]]})
        made.param_groups[-1].update(_way_on_device(group))
    return made, pairs


def _way_on_device(group: dict[str, Any]) -> dict[str, bool]:
    """Options under which the step goes on meta tensors as it would on the real device."""
    options = {key: False for key in ("capturable", "fused") if group.get(key)}
    if "foreach" in group and group["foreach"] is None and not group.get("fused"):
        options["foreach"] = _default_to_fused_or_foreach(group["params"], group.get("differentiable", False))[1]
    return options


def _state_like(value: Any, parameter: torch.Tensor) -> Any:
    """Numbers keep their values: steps are counted in them."""
    large = isinstance(value, torch.Tensor) and value.device == parameter.device and value.ndim > 0
    return like(value) if large else copy.deepcopy(value)


def _held_bytes(optimizer: Any, pairs: Pairs) -> int:
    """Bytes of the state that would be on its parameter's device."""
    held: dict[int, int] = {}
    for real, one in pairs:
        for tensor in tensors_in(optimizer.state.get(one)):
            if tensor.is_meta or tensor.device == real.device:
                storage = tensor.untyped_storage()
                held[storage._cdata] = allocated_bytes(storage.nbytes(), real.device)
    return sum(held.values())

"""Real arguments for a signature: contents that every operator accepts, in the layout it had."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch

from graphopt.cost_models.signature import Signature, Slot, TensorSpec
from graphopt.kernels.recurrent.packing import some_batch_sizes

_TILE_NUMEL = 4096

#: The elements of an integer tensor, from their number.
Integers = Callable[[int], torch.Tensor]


def runnable(call: Signature) -> Callable[[], Any] | None:
    """`call` on new tensors, run once to warm up; None where it raises.

    Integers that are no indices are zero, or one where zero is refused as a divisor.
    """
    for integer in (0, 1):
        args, kwargs = make_arguments(call, integer)
        try:
            call.target(*args, **kwargs)
        except Exception as error:  # whatever a user's own operator may raise
            if "zero" in str(error).lower():
                continue
            return None
        return lambda: call.target(*args, **kwargs)
    return None


def make_arguments(call: Signature, integer: int = 0) -> tuple[list[Any], dict[str, Any]]:
    """Allocate arguments for `call`. No generator of the process is used, no tensor of the user's is touched.

    Floats are in [0, 1), where probabilities, logarithms and standard deviations are all defined; booleans
    are true, so that a mask selects everything; indices are spread over their range where it is known, no bag
    is empty, and other integers are `integer`.
    """
    known, on_host = _known_integers(call), _read_by_host(call)
    specs = [replace(s, device=torch.device("cpu")) if i in on_host else s for i, s in enumerate(call.tensors)]
    tensors = [_make_tensor(spec, known.get(slot), integer) for slot, spec in enumerate(specs)]
    args = [_filled(argument, tensors) for argument in call.args]
    return args, {name: _filled(value, tensors) for name, value in call.kwargs.items()}


def _filled(argument: Any, tensors: Sequence[torch.Tensor]) -> Any:
    # No function inside another that calls itself: such a circle would keep the tensors until garbage is collected.
    if isinstance(argument, Slot):
        return tensors[argument.index]
    if isinstance(argument, (list, tuple)):
        return type(argument)(_filled(item, tensors) for item in argument)
    return argument


def _make_tensor(spec: TensorSpec, known: Integers | None, integer: int) -> torch.Tensor:
    storage = torch.empty(spec.extent, dtype=spec.dtype, device=spec.device)
    if spec.dtype is torch.bool:
        storage.fill_(True)
    elif not (spec.dtype.is_floating_point or spec.dtype.is_complex):
        storage.fill_(integer) if known is None else storage.copy_(known(spec.extent))
    elif spec.extent > 0:
        # A repeated tile: filling with the generator would take longer than most ops.
        tile = _tile(spec.dtype, spec.device)
        whole = spec.extent // _TILE_NUMEL
        storage[: whole * _TILE_NUMEL].view(whole, _TILE_NUMEL).copy_(tile.expand(whole, _TILE_NUMEL))
        storage[whole * _TILE_NUMEL :].copy_(tile[: spec.extent - whole * _TILE_NUMEL])
    return storage.as_strided(spec.shape, spec.stride)


@cache
def _tile(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.complex64 if dtype.is_complex else torch.float32
    return torch.rand(_TILE_NUMEL, generator=generator, dtype=drawn).to(device, dtype)


def _below(bound: int) -> Integers:
    """Indices spread over a range."""

    def spread(numel: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randint(max(bound, 1), (numel,), generator=generator)

    return spread


def _all(value: int) -> Integers:
    return lambda numel: torch.full((numel,), value)


#: What the integers of a call must be, by slot.
Rule = Callable[[Signature], dict[int, Integers]]

#: Numbers that an op's host code reads: their meta kernels say that they are on the device, where reading them crashes.
_HOST_NUMBERS = {
    "aten._scaled_dot_product_efficient_attention_backward": (7, 8),
    "aten._efficient_attention_backward": (12, 13),
}


def _read_by_host(call: Signature) -> set[int]:
    """Slots of the seed and the offset of dropout inside attention, which are on the CPU outside of CUDA graphs."""
    positions = _HOST_NUMBERS.get(str(getattr(call.target, "overloadpacket", "")), ())
    return {slot.index for slot in (call.args[p] for p in positions if p < len(call.args)) if isinstance(slot, Slot)}


def _known_integers(call: Signature) -> dict[int, Integers]:
    """What integers must be by slot, for the operators of which that is known."""
    rule = _RULES.get(str(getattr(call.target, "overloadpacket", "")))
    return {} if rule is None else rule(call)


def _first_shape(call: Signature, position: int = 0) -> tuple[int, ...]:
    slot = call.args[position]
    return call.tensors[slot.index].shape if isinstance(slot, Slot) else ()


def _at(position: int, integers: Callable[[Signature], Integers]) -> Rule:
    def rule(call: Signature) -> dict[int, Integers]:
        slot = call.args[position] if position < len(call.args) else None
        return {slot.index: integers(call)} if isinstance(slot, Slot) else {}

    return rule


def _indices_at(position: int, bound: Callable[[Signature], int]) -> Rule:
    return _at(position, lambda call: _below(bound(call)))


def _together(*rules: Rule) -> Rule:
    return lambda call: {slot: integers for rule in rules for slot, integers in rule(call).items()}


def _bags_at(indices: int, bag_size: int, maximum_indices: int, weights: int) -> Rule:
    """Of EmbeddingBag's backward: where it takes the maximum, it copies what belongs to bags that are not empty."""
    below = [_indices_at(position, lambda call: int(call.args[weights])) for position in (indices, maximum_indices)]
    return _together(*below, _at(bag_size, lambda _call: _all(1)))


def _along(call: Signature) -> int:
    """Size of the dimension that gather, scatter and their kin index, named by their second argument."""
    shape = _first_shape(call)
    return shape[call.args[1]] if shape else 1


def _classes(position: int) -> Callable[[Signature], int]:
    return lambda call: _first_shape(call, position)[1 if len(_first_shape(call, position)) > 1 else 0]


def _advanced(call: Signature) -> dict[int, Integers]:
    """`index(self, [None, i, ...])`: indices for each dimension; a boolean one takes as many as it has."""
    shape, dimension = _first_shape(call), 0
    bounds: dict[int, int] = {}
    for slot in call.args[1]:
        spec = call.tensors[slot.index] if isinstance(slot, Slot) else None
        if spec is None or spec.dtype not in (torch.bool, torch.uint8):
            if isinstance(slot, Slot):
                bounds[slot.index] = min(shape[dimension], bounds.get(slot.index, shape[dimension]))
            dimension += 1
        else:
            dimension += len(spec.shape)
    return {slot: _below(bound) for slot, bound in bounds.items()}


def _sizes_of(call: Signature, batch_sizes: int, rows: int, batch: int) -> tuple[int, int, int]:
    """Rows, steps and sequences of a call, with the positions of these tensors, or of the number of sequences."""
    sequences = call.args[batch] if isinstance(call.args[batch], int) else _first_shape(call, batch)[-2]
    return _first_shape(call, rows)[0], _first_shape(call, batch_sizes)[0], sequences


def _batch_sizes_at(position: int, rows: int, batch: int) -> Rule:
    """Of packed sequences: the rows of each step, as they go with the sizes."""

    def integers(call: Signature) -> Integers:
        return lambda _numel: torch.tensor(some_batch_sizes(*_sizes_of(call, position, rows, batch)))

    return _at(position, integers)


def _batch_sizes_of_padded(call: Signature) -> dict[int, Integers]:
    """The same for `pack_rows`, whose input is padded."""
    shape, steps = _first_shape(call), _first_shape(call, 1)[0]
    sizes = torch.tensor(some_batch_sizes(call.args[2], steps, shape[0 if call.args[3] else 1]))
    return _at(1, lambda _call: lambda _numel: sizes)(call)


_RULES: dict[str, Rule] = {
    "aten.embedding": _indices_at(1, lambda call: _first_shape(call)[0]),
    "aten.embedding_dense_backward": _indices_at(1, lambda call: int(call.args[2])),
    "aten._embedding_bag_backward": _bags_at(indices=1, bag_size=4, maximum_indices=5, weights=6),
    "aten._embedding_bag_dense_backward": _bags_at(indices=1, bag_size=3, maximum_indices=4, weights=5),
    "aten.nll_loss_forward": _indices_at(1, _classes(0)),
    "aten.nll_loss2d_forward": _indices_at(1, _classes(0)),
    "aten.nll_loss_backward": _indices_at(2, _classes(1)),
    "aten.nll_loss2d_backward": _indices_at(2, _classes(1)),
    "aten.max_pool2d_with_indices_backward": _indices_at(7, lambda call: math.prod(_first_shape(call, 1)[-2:])),
    **{f"aten.{name}": _indices_at(2, _along) for name in ("gather", "scatter", "scatter_add", "index_add")},
    **{f"aten.{name}": _indices_at(2, _along) for name in ("index_select", "index_copy", "index_fill")},
    **{f"aten.{name}": _indices_at(2, _along) for name in ("index_reduce", "scatter_reduce")},
    **{f"aten.{name}": _advanced for name in ("index", "index_put", "_unsafe_index", "_unsafe_index_put")},
    "graphopt.masked_gradient": _advanced,
    "graphopt.batch_sizes": _at(0, lambda call: _all(call.args[1])),
    "graphopt.pack_rows": _batch_sizes_of_padded,
    "graphopt.pad_rows": _batch_sizes_at(1, rows=0, batch=2),
    "graphopt.recurrence": _batch_sizes_at(1, rows=0, batch=2),
    "graphopt.recurrence_backward": _batch_sizes_at(5, rows=3, batch=6),
    "graphopt.cudnn_layers": _batch_sizes_at(4, rows=0, batch=1),
    "graphopt.cudnn_layers_backward": _batch_sizes_at(9, rows=3, batch=6),
}

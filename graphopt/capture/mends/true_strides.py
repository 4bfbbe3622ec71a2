"""Fake tensors whose strides and types are those that kernels give, where torch's rules for fake ones say otherwise.

AOTAutograd decides by fake strides what it traces: whether a reshape is a view or a copy, how a product
is made. Where the kernel then gives others, a view does not fit ("view size is not compatible"), or a
sum runs in another order than eager's. So the ops that are known for it are run, on tensors with the
same order of strides but no more than a few elements, and the fake result is laid out as theirs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from graphopt.cost_models.device_speed import at_hand
from graphopt.graph.numbers import SYMBOLS
from graphopt.kernels.layout import is_dense

aten = torch.ops.aten

#: Found by running some 150 modules and functions on six layouts each, node by node, on a CPU with torch 2.13, and the
#: kin of those found; and by PyTorch's own samples of its functions (`op_db`, as far as `nn.functional.max_unpool2d`)
#: on three layouts, forward and backward. All others had the strides that they were traced with. Of none do strides
#: depend on sizes.
OPS = frozenset(
    (
        *(aten._native_batch_norm_legit_functional.default, aten._native_batch_norm_legit_no_training.default),
        *(aten._native_batch_norm_legit.default, aten._native_batch_norm_legit.no_stats),
        *(aten.native_batch_norm.default, aten.native_batch_norm_backward.default),
        *(aten.reflection_pad2d_backward.default, aten.replication_pad2d_backward.default),
        *(aten.replication_pad3d.default, aten.replication_pad3d_backward.default),
        *(aten.channel_shuffle.default, aten.native_dropout_backward.default),
        *(aten.native_layer_norm_backward.default, aten._log_softmax_backward_data.default),
        *(aten.max_unpool2d.default, aten.max_unpool3d.default),
        # element by element, but torch's rules do not know it
        *(aten.div.Tensor_mode, aten.floor_divide.default, aten.copysign.Tensor, aten.pow.Scalar),
        *(aten.elu_backward.default, aten.leaky_relu_backward.default, aten._prelu_kernel_backward.default),
        *(aten.hardswish_backward.default, aten.hardsigmoid_backward.default, aten.hardtanh_backward.default),
        *(aten.softplus_backward.default, aten.mish_backward.default, aten.rrelu_with_noise_backward.default),
        *(aten.softshrink_backward.default, aten.hardshrink_backward.default),
        *(aten.log_sigmoid_forward.default, aten.log_sigmoid_backward.default),
        *(aten.mse_loss.default, aten.mse_loss_backward.default),
        *(aten.smooth_l1_loss.default, aten.smooth_l1_loss_backward.default),
        *(aten.huber_loss.default, aten.huber_loss_backward.default),
        *(aten.soft_margin_loss.default, aten.soft_margin_loss_backward.default),
        *(aten.binary_cross_entropy.default, aten.binary_cross_entropy_backward.default),
    )
)
#: The longest side of a tensor that an op is tried on: enough for strides to tell dimensions apart.
_SIDE = 3


@contextmanager
def true_strides() -> Iterator[None]:
    """Trace with the strides that kernels give."""
    dispatch = FakeTensorMode.dispatch

    def laid_out(mode: FakeTensorMode, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        fake = dispatch(mode, op, types, args, kwargs)
        if op not in OPS or _needs_no_trial((args, kwargs)):
            return fake
        real = _tried(op, args, kwargs or {})
        if real is None:
            return fake
        leaves, structure = pytree.tree_flatten(fake)
        with mode:
            return pytree.tree_unflatten(list(map(_laid_out_as, leaves, pytree.tree_leaves(real))), structure)

    with mock.patch.object(FakeTensorMode, "dispatch", laid_out):
        yield


def _needs_no_trial(arguments: object) -> bool:
    """Whether everything is contiguous and of one type, of which the rules are true, or nothing can be tried."""
    leaves = pytree.tree_leaves(arguments)
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    sizes = [size for tensor in tensors for size in (*tensor.shape, *tensor.stride())]
    if None in _now(sizes) or not all(at_hand(tensor.device) for tensor in tensors):
        return True
    # what batch norms of half inputs with float32 parameters save is float32
    is_mixed = len({tensor.dtype for tensor in tensors if tensor.is_floating_point()}) > 1
    return not is_mixed and all(map(_in_rows, tensors))


def _now(sizes: Iterable[Any]) -> list[Any]:
    """Sizes as they are in the call that is traced, without a guard on symbols; None for those that data decide."""
    return [size.node.hint if isinstance(size, SYMBOLS) else size for size in sizes]


def _in_rows(tensor: torch.Tensor) -> bool:
    """Whether it is contiguous: its dimensions lie in memory in their own order, without gaps."""
    expected = 1
    for size, stride in reversed(list(zip(_now(tensor.shape), _now(tensor.stride()), strict=True))):
        if size > 1 and stride != expected:
            return False
        expected *= max(1, size)
    return True


def _tried(op: OpOverload, args: Any, kwargs: Any) -> Any:
    """What the op gives for small tensors of the same order of strides; None where it runs on none.

    Sizes that are arguments too (padding, groups) must fit: then only batch and channels are small, or the batch.
    """
    for small in (None, 2, 1):

        def twin(leaf: Any, dimensions: int | None = small) -> Any:
            if isinstance(leaf, SYMBOLS):
                return leaf.node.hint
            return _twin(leaf, dimensions) if isinstance(leaf, torch.Tensor) else leaf

        with _disable_current_modes(), torch.no_grad():
            try:
                return op(*pytree.tree_map(twin, args), **pytree.tree_map(twin, kwargs))
            except (RuntimeError, IndexError, ValueError):
                continue
    return None


def _twin(tensor: torch.Tensor, dimensions: int | None) -> torch.Tensor:
    """Zeros with no side longer than a few elements, in the order of the tensor's strides; gaps stay gaps."""
    sizes, steps = _now(tensor.shape), _now(tensor.stride())
    kept = sizes if dimensions is None else sizes[:dimensions]
    shape = [min(size, _SIDE) for size in kept] + sizes[len(kept) :]
    strides = [0] * len(shape)
    filled, filled_here = 1, 1
    for i in sorted(range(len(shape)), key=lambda i: (steps[i], sizes[i])):
        if steps[i] == 0:
            continue
        strides[i] = filled_here * max(1, steps[i] // filled)
        filled, filled_here = max(1, steps[i] * sizes[i]), strides[i] * shape[i]
    return torch.zeros(filled_here, dtype=tensor.dtype, device=tensor.device).as_strided(shape, strides)


def _laid_out_as(fake: Any, real: Any) -> Any:
    """The fake tensor, or one like it of the real one's type, in memory ordered as the real one's dimensions are."""
    if not isinstance(fake, torch.Tensor) or not isinstance(real, torch.Tensor):
        return fake
    order = _order(real.stride(), real.shape)
    if order == _order(_now(fake.stride()), _now(fake.shape)) or not is_dense(real):
        if fake.dtype == real.dtype:
            return fake
        return torch.empty_strided(fake.shape, fake.stride(), dtype=real.dtype, device=fake.device)
    strides: list[Any] = [1] * fake.ndim
    filled: Any = 1
    for i, now in sorted(enumerate(_now(fake.shape)), key=lambda each: (real.stride(each[0]), real.shape[each[0]] > 1)):
        strides[i] = filled
        filled *= fake.shape[i] if now else 1
    return torch.empty_strided(fake.shape, strides, dtype=real.dtype, device=fake.device)


def _order(strides: Sequence[int], shape: Sequence[int]) -> list[int]:
    """Dimensions of more than one element, the innermost first."""
    return sorted((i for i, size in enumerate(shape) if size > 1), key=lambda i: strides[i])

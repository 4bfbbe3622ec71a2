"""Tensors laid out as kernels that walk memory from end to end need them.

torch 2.13's fused updates on CPU take every tensor's memory as one flat array and never look at
strides: a transposed gradient is applied to the wrong parameters without a word.
"""

from __future__ import annotations

import torch
from torch import Tensor


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements of a tensor of any shape fill one piece of memory, each once, in whatever order."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1):
        if stride != expected:
            return False
        expected *= size
    return True


def same_order(tensor: Tensor, dense: Tensor) -> bool:
    """Whether a tensor has its elements in the same order in memory as a dense one of its shape, without gaps."""
    if tensor.is_contiguous() and dense.is_contiguous():
        return True  # found without making any tuple: this is asked of every tensor of a step
    if tensor.stride() == dense.stride():
        return True
    strides = zip(tensor.shape, tensor.stride(), dense.stride(), strict=True)
    return all(a == b for size, a, b in strides if size > 1)


def as_laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    """`tensor` itself where its memory has the order of the dense `like`, else a copy that has."""
    return tensor if same_order(tensor, like) else torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)


def dense(tensor: Tensor) -> Tensor:
    """`tensor` itself where it is dense, else a contiguous copy."""
    return tensor if is_dense(tensor) else tensor.contiguous()


def flat(dense: Tensor) -> Tensor:
    """A view of a dense tensor, [elements], of its elements in the order that they have in memory."""
    assert is_dense(dense)
    return dense.as_strided((dense.numel(),), (1,))


def write_back(laid_out: list[Tensor], originals: list[Tensor]) -> None:
    """Copy each tensor of `laid_out` that is not the original itself into that."""
    for source, target in zip(laid_out, originals, strict=True):
        if source is not target:
            target.copy_(source)

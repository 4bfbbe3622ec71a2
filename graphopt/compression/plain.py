"""Gradients that travel as they are: one alone in place, many small ones behind each other in one message."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

import graphopt.kernels  # noqa: F401  the ops
from graphopt.compression.bucket import Agree, AllReduce, Bucket, Protocol, TensorLike

_ops = torch.ops.graphopt
_aten = torch.ops.aten


def whole(bucket: Bucket) -> Protocol:
    """The only gradient of the bucket is summed where it is."""
    (gradient,) = bucket.gradients
    total = yield AllReduce(gradient)
    check(bucket, total)
    yield Agree()


def packed(dtype: torch.dtype) -> Callable[[Bucket], Protocol]:
    """All gradients of the bucket, which are of that dtype, are summed in one message."""

    def protocol(bucket: Bucket) -> Protocol:
        total = yield AllReduce(_ops.pack.default(bucket.gradients, dtype))
        check(bucket, total)
        yield Agree()
        _ops.unpack_.default(total, bucket.gradients)

    return protocol


def check(bucket: Bucket, total: TensorLike) -> None:
    """State of other buckets must not go on without this one; nobody asks where nothing is kept."""
    if bucket.overflow is not None:
        _aten.clamp_min_.Tensor(bucket.overflow, _ops.gradient_norm.default([total], math.inf)[1])

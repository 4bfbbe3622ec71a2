"""Normalisation: of batches, layers, groups, instances and norms."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphopt.base.errors import OnnxError
from graphopt.formats.onnx.ops.node import DTYPES, Handler, OnnxNode, axis_of, is_known


class BatchStatistics(nn.Module):
    """BatchNormalization: in training of the batch's own statistics, and it keeps the running ones.

    `momentum` is torch's, the share of the new: 1 less ONNX's. Weights are inputs, as they are parameters elsewhere.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, mean: Tensor, variance: Tensor, momentum: float, epsilon: float) -> None:
        super().__init__()
        self.register_buffer("running_mean", mean.detach().clone())
        self.register_buffer("running_var", variance.detach().clone())
        self.momentum, self.epsilon = momentum, epsilon

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """`x` [N, C, ...], normalised per channel."""
        return F.batch_norm(
            x, self.running_mean, self.running_var, weight, bias, self.training, self.momentum, self.epsilon
        )


def _batch(node: OnnxNode, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Any:
    momentum, epsilon = node.get("momentum", 0.9), node.get("epsilon", 1e-5)
    if node.get("spatial", 1) == 0:
        raise OnnxError("spatial=0, statistics of each place, is not known here")
    if node.get("training_mode", 0) and (node.wants(1) or node.wants(2)):
        dims = [0, *range(2, x.dim())]
        now_mean = x.mean(dims)
        now_variance = x.var(dims, correction=0)
        y = F.batch_norm(x, None, None, scale, bias, True, 0.0, epsilon)
        return y, mean * momentum + now_mean * (1 - momentum), variance * momentum + now_variance * (1 - momentum)
    if is_known(mean) and is_known(variance):
        y = node.layer(BatchStatistics(mean, variance, 1 - momentum, epsilon), x, scale, bias)
    else:
        y = F.batch_norm(x, mean, variance, scale, bias, False, 0.0, epsilon)
    # below opset 14 further outputs are for training only, and nothing reads them
    return (y, *[None] * 4) if len(node.wanted) > 1 else y


def _layer(node: OnnxNode, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Any:
    axis, epsilon = axis_of(node.get("axis", -1), x.dim()), node.get("epsilon", 1e-5)
    shape = list(x.shape[axis:])
    weights = [None if each is None else each.expand(shape) for each in (scale, bias)]
    if not (node.wants(1) or node.wants(2)):
        return F.layer_norm(x, shape, weights[0], weights[1], epsilon)
    y, mean, inverse = torch.native_layer_norm(x, shape, weights[0], weights[1], epsilon)
    return y, mean, inverse


def _root_mean_square(node: OnnxNode, x: Tensor, scale: Tensor) -> Tensor:
    axis, epsilon = axis_of(node.get("axis", -1), x.dim()), node.get("epsilon", 1e-5)
    dtype = DTYPES.get(node.get("stash_type", 1), torch.float32)
    wide = x.to(dtype)
    inverse = torch.rsqrt(wide.square().mean(list(range(axis, x.dim())), keepdim=True) + epsilon)
    return (wide * inverse).to(x.dtype) * scale


def _group(node: OnnxNode, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups, epsilon = node.get("num_groups"), node.get("epsilon", 1e-5)
    if scale.shape[0] == x.shape[1]:
        return F.group_norm(x, groups, scale, bias, epsilon)
    # opset 18: one weight for each group
    each = x.shape[1] // groups
    return F.group_norm(x, groups, scale.repeat_interleave(each), bias.repeat_interleave(each), epsilon)


def _instance(node: OnnxNode, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return F.instance_norm(x, weight=scale, bias=bias, eps=node.get("epsilon", 1e-5))


def _mean_variance(node: OnnxNode, x: Tensor) -> Tensor:
    axes = node.get("axes", [0, 2, 3])
    centred = x - x.mean(axes, keepdim=True)
    return centred / ((x * x).mean(axes, keepdim=True) - x.mean(axes, keepdim=True) ** 2).sqrt().add(1e-9)


def _lp(node: OnnxNode, x: Tensor) -> Tensor:
    axis, p = node.get("axis", -1), node.get("p", 2)
    norm = x.abs().sum(axis, keepdim=True) if p == 1 else (x * x).sum(axis, keepdim=True).sqrt()
    return x / torch.where(norm == 0, torch.ones_like(norm), norm)


def _local_response(node: OnnxNode, x: Tensor) -> Any:
    size, alpha = node.get("size"), node.get("alpha", 1e-4)
    before = math.floor((size - 1) / 2)
    squares = F.pad((x * x).flatten(2).transpose(1, 2), (before, size - 1 - before))
    sums = squares.unfold(-1, size, 1).sum(-1).transpose(1, 2).reshape(x.shape)
    return x / (node.get("bias", 1.0) + alpha / size * sums) ** node.get("beta", 0.75)


NORMALISATION: dict[str, Handler] = {
    "BatchNormalization": _batch,
    "LayerNormalization": _layer,
    "RMSNormalization": _root_mean_square,
    "GroupNormalization": _group,
    "InstanceNormalization": _instance,
    "MeanVarianceNormalization": _mean_variance,
    "LpNormalization": _lp,
    "LRN": _local_response,
}

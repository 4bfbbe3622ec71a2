"""Losses that stand inside of a file."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from graphopt.formats.onnx.ops.node import Handler, OnnxNode


def _negative_log_likelihood(node: OnnxNode, x: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    ignored = node.get("ignore_index", -100)
    return F.nll_loss(x, target.to(torch.int64), weight, ignore_index=ignored, reduction=node.get("reduction", "mean"))


def _cross_entropy(node: OnnxNode, x: Tensor, target: Tensor, weight: Tensor | None = None) -> Any:
    logarithms = F.log_softmax(x, 1)
    loss = _negative_log_likelihood(node, logarithms, target, weight)
    return (loss, logarithms) if node.wants(1) else loss


LOSSES: dict[str, Handler] = {
    "NegativeLogLikelihoodLoss": _negative_log_likelihood,
    "SoftmaxCrossEntropyLoss": _cross_entropy,
}

"""Quantization by our ops, and as one would write it in torch's; the plain wires are tuples, never put together."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.compression.kernels_rows import Comparison, Gradients
from graphopt import kernels

BLOCK = 512
Wire = tuple[Tensor, Tensor]


def quantizing(gradients: Gradients) -> list[Comparison]:
    """8-bit quantization there and back, in one exchange or two, and QSGD."""
    return [
        _quantize(gradients),
        _dequantize(gradients),
        _requantize(gradients),
        _qsgd(gradients),
        _sum_parts(gradients),
    ]


def _quantize(gradients: Gradients) -> Comparison:
    overflow, scale = torch.zeros(()), torch.ones(())
    pairs = list(zip(gradients.buckets, gradients.residuals, strict=True))
    flat = list(zip(gradients.flat, gradients.flat_residuals, strict=True))
    whole, whole_residual = torch.cat(gradients.flat), torch.cat(gradients.flat_residuals)
    return Comparison(
        "8 bits with error feedback",
        lambda: [kernels.quantize_(bucket, residuals, overflow, scale, 2) for bucket, residuals in pairs],
        {
            "plain": lambda: [quantize(bucket + residual, bucket) for bucket, residual in flat],
            "plain, 100 MB at once": lambda: quantize(whole + whole_residual, whole),
        },
    )


def _dequantize(gradients: Gradients) -> Comparison:
    scale = torch.ones(())
    ours = [(torch.cat([wire, wire]), bucket) for wire, bucket in _wires(gradients)]
    plain = [(quantize(bucket, torch.empty_like(bucket)), bucket) for bucket in gradients.flat]
    return Comparison(
        "8 bits: sum of 2 wires",
        lambda: [kernels.dequantize_(wire, bucket, 2, scale) for wire, bucket in ours],
        {"plain": lambda: [total([wire, wire], bucket.view(-1, BLOCK)) for wire, bucket in plain]},
    )


def _requantize(gradients: Gradients) -> Comparison:
    ours = _wires(gradients)
    plain = [(quantize(bucket, torch.empty_like(bucket)), bucket) for bucket in gradients.flat]
    return Comparison(
        "8 bits: this rank's half of 2 wires, summed and quantized",
        lambda: [kernels.requantize_(wire, bucket, 0, 2) for wire, bucket in ours],
        {"plain": lambda: [requantize(wire, bucket) for wire, bucket in plain]},
    )


def _qsgd(gradients: Gradients) -> Comparison:
    overflow, scale, buckets = torch.zeros(()), torch.ones(()), gradients.buckets
    return Comparison(
        "QSGD, 8 bits",
        lambda: [kernels.qsgd(bucket, overflow, scale, 8, 1, 0, 1, 0) for bucket in buckets],
        {"plain": lambda: [qsgd(bucket, 127) for bucket in gradients.flat]},
    )


def _sum_parts(gradients: Gradients) -> Comparison:
    half = [bucket.to(torch.bfloat16) for bucket in gradients.flat]
    return Comparison(
        "bf16: sum of 4 parts",
        lambda: [kernels.sum_parts(bucket, 4) for bucket in half],
        {"plain": lambda: [bucket.view(4, -1).float().sum(0).bfloat16() for bucket in half]},
    )


def _wires(gradients: Gradients) -> list[tuple[Tensor, list[Tensor]]]:
    return [(kernels.quantize_(bucket, [], torch.zeros(()), None, 2), bucket) for bucket in gradients.buckets]


def quantize(x: Tensor, kept: Tensor) -> Wire:
    """Levels and steps of blocks; what is left of x goes into `kept`."""
    x = x.view(-1, BLOCK)
    step = x.abs().amax(1, keepdim=True) / 127
    levels = (x / step).round().clamp(-127, 127).to(torch.int8)
    torch.sub(x, levels * step, out=kept.view(-1, BLOCK))
    return levels, step


def total(wires: list[Wire], result: Tensor) -> Tensor:
    """Their sum, one block a row."""
    (first, step), *others = wires
    torch.mul(first, step, out=result)
    for levels, step in others:
        result += levels * step
    return result


def requantize(wire: Wire, gradient: Tensor) -> Wire:
    """Half of a wire, summed with the same of another rank; the error joins what is kept."""
    levels, step = (part[: len(part) // 2] for part in wire)
    x = total([(levels, step)] * 2, torch.empty(levels.shape, device=levels.device))
    result = quantize(x, x)
    gradient.view(-1, BLOCK)[: len(x)] += x
    return result


def qsgd(gradient: Tensor, most: int) -> Wire:
    """Levels rounded at random, and steps."""
    x = gradient.view(-1, BLOCK)
    step = x.abs().amax(1, keepdim=True) / most
    return (x / step + torch.rand_like(x)).floor().clamp(-most, most).to(torch.int8), step

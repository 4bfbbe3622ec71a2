"""The random numbers that gradients are rounded with: Philox 4x32-10 (Salmon et al., SC 2011), in torch's own ops."""

from __future__ import annotations

import torch
from torch import Tensor

from graphopt.kernels.quantize.blocks import BLOCK_ELEMENTS

_LOW = 0xFFFFFFFF


def uniform(step: Tensor, seed: int, draw: int, rank: int) -> Tensor:
    """Random multiples of 2^-24 in [0, 1), fp32 [blocks, BLOCK_ELEMENTS], for a parameter's steps, fp32 [blocks, 1].

    A call of Philox gives four, which go to elements k, k + 128, k + 256 and k + 384 of a block. Of `seed` the lowest
    64 bits count, of `draw` 32.
    """
    quarter = BLOCK_ELEMENTS // 4
    calls = torch.arange(len(step) * quarter, device=step.device).view(-1, quarter)
    bits = step.view(torch.int32).long() & _LOW
    words = philox((calls & _LOW, bits, draw & _LOW, (seed >> 32) & _LOW), (seed & _LOW, rank))
    return torch.cat([word >> 8 for word in words], 1).float() * 2.0**-24


def philox(counter: tuple[Tensor, Tensor, int, int], key: tuple[int, int]) -> list[Tensor]:
    """Four random words for each counter, tensors of int64 that hold 32 bits.

    A counter is four words and a key two, of 32 bits; those that are tensors are int64, and broadcast.
    """
    a, b, c, d = torch.broadcast_tensors(*(torch.as_tensor(word, device=counter[0].device) for word in counter))
    first, second = key
    for _ in range(10):
        left, right = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (
            ((right >> 32) & _LOW) ^ b ^ first,
            right & _LOW,
            ((left >> 32) & _LOW) ^ d ^ second,
            left & _LOW,
        )
        first, second = (first + 0x9E3779B9) & _LOW, (second + 0xBB67AE85) & _LOW
    return [a, b, c, d]

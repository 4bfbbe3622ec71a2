"""The ops around a message, `torch.ops.graphopt.*`: gradients in and out of one tensor, and what ranks keep.

`pack(tensors, dtype)` is all elements, cast, in one 1-d tensor: of each tensor in the order of its memory.
`unpack_(flat, tensors)` puts them back, cast again. fp32, fp16 and bf16, dense.

`sum_parts(received, parts)` is the sum of `parts` equal parts of a 1-d half tensor, added up in their order in fp32 and
rounded once.

`commit_(state, pending, overflow)` copies pending into state where `overflow`, a fp32 scalar, is 0.0; else state keeps
its bits. A tensor and its state are of one layout.
"""

from __future__ import annotations

import torch
from torch import Tensor

from graphopt.kernels.define import define, fitting, no_result
from graphopt.kernels.messages import own_cpu, stock


def _packed(tensors: list[Tensor], dtype: torch.dtype) -> Tensor:
    device = tensors[0].device if tensors else None
    return torch.empty(sum(tensor.numel() for tensor in tensors), dtype=dtype, device=device)


def _part(received: Tensor, parts: int) -> Tensor:
    return received.new_empty(received.numel() // parts)


pack = define("pack(Tensor[] tensors, ScalarType dtype) -> Tensor", stock.pack, _packed)
unpack_ = define("unpack_(Tensor flat, Tensor(a!)[] tensors) -> ()", stock.unpack_, no_result)
sum_parts = define(
    "sum_parts(Tensor received, int parts) -> Tensor",
    fitting(stock.sum_parts, own_cpu, "graphopt.kernels.tail.own_cuda"),  # which has none
    _part,
)
commit_ = define("commit_(Tensor(a!)[] state, Tensor[] pending, Tensor overflow) -> ()", stock.commit_, no_result)

"""The ops around a message, `torch.ops.graphopt.*`: gradients in and out of one tensor, and what ranks keep.

`pack(tensors, dtype)` is all elements of tensors of any shapes, cast, in one tensor of shape [elements of all]: of each
tensor in the order of its memory. `unpack_(flat, tensors)` puts them back, cast again. fp32, fp16 and bf16; tensors are
dense and on one device. RuntimeError where the elements of `flat` are not as many as those of `tensors`.

`sum_parts(received, parts)` is the sum of the `parts` equal parts of a half tensor of shape [parts × n], added up in
their order in fp32 and rounded once: [n], of the same dtype.

`commit_(state, pending, overflow)` copies pending into state where `overflow`, a fp32 scalar, is 0.0; else state keeps
its bits. The lists are as long as each other; a tensor and its state are of one shape and layout.
"""

from __future__ import annotations

import torch
from torch import Tensor

from graphopt.kernels.define import Implementations, define, dispatching, no_result
from graphopt.kernels.messages import cpu, definition

#: What runs each op.
TABLE = {
    "pack": Implementations(definition.pack),
    "unpack_": Implementations(definition.unpack_),
    "sum_parts": Implementations(definition.sum_parts, cpu.sum_parts),
    "commit_": Implementations(definition.commit_),
}


def _packed(tensors: list[Tensor], dtype: torch.dtype) -> Tensor:
    device = tensors[0].device if tensors else None
    return torch.empty(sum(tensor.numel() for tensor in tensors), dtype=dtype, device=device)


def _part(received: Tensor, parts: int) -> Tensor:
    return received.new_empty(received.numel() // parts)


pack = define("pack(Tensor[] tensors, ScalarType dtype) -> Tensor", dispatching(TABLE["pack"]), _packed)
unpack_ = define("unpack_(Tensor flat, Tensor(a!)[] tensors) -> ()", dispatching(TABLE["unpack_"]), no_result)
sum_parts = define("sum_parts(Tensor received, int parts) -> Tensor", dispatching(TABLE["sum_parts"]), _part)
commit_ = define(
    "commit_(Tensor(a!)[] state, Tensor[] pending, Tensor overflow) -> ()", dispatching(TABLE["commit_"]), no_result
)

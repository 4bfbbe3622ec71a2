"""The ops that send gradients as small integers, `torch.ops.graphopt.*`; `blocks` says what a wire looks like.

Gradients are dense, of any shapes, of one layout on all ranks, and on one device; residuals are of their shapes and
layouts, one for one. A wire is uint8 of shape [bytes], a whole number of blocks. `inverse_scale` and `scale` are fp32
scalars; None stands for 1. Everything is deterministic, for any number of threads too.

`quantize_` sends x = gradient × inverse_scale + residual, rounded to 8 bits: at most half a step from x, the step
being 1/127 of the largest |x| of the block (at most 2^-15 more). What is left, x less what is sent, takes the
gradient's place: exactly, to the bit. Gradients and residuals are fp32; `residuals` may be empty. A block with nothing
above 2^-100 sends zeros. `overflow`, a fp32 scalar, becomes 1.0 where an x is not finite or is 2^127 and above; such
a block sends zeros. The wire's blocks are a multiple of `parts`.

`requantize_` sums, in rank order and fp32, the `parts` wires that ranks sent of the `rank`-th of `parts` equal parts
of the blocks, [parts × bytes of a part] one behind the other, and gives the wire of the sum, [bytes of a part]; its
rounding error is added to `gradients`, fp32, where quantize_ left what this rank keeps. A sum beyond fp32 arrives as
NaN, and leaves the gradients as they are.

`dequantize_` writes scale × the sum of `copies` wires, [copies × bytes], in their order and fp32, into the gradients.

`qsgd` rounds gradient × inverse_scale at random, up or down, so that its mean is the gradient (Alistarh et al.,
NeurIPS 2017, section 3; a bucket is a block, scaled by its largest element as in the paper's experiments): `bits` are
8, 4 or 2, one of them the sign. Gradients may be half, and are not written. Random numbers are Philox 4x32-10 (Salmon
et al., SC 2011) of `seed`, `rank`, `draw`, the place in the parameter and the block's step, which stands for the
parameter: so nothing depends on which parameters travel together. The mean is right to 2^-23 of an element and 2^-24
of a step. `overflow` and the wire's length are as above. `dequantize_qsgd_` is dequantize_ of its wires; gradients may
be half.
"""

from __future__ import annotations

import torch
from torch import Tensor

from graphopt.kernels.define import Implementations, define, dispatching, no_result
from graphopt.kernels.quantize import cpu, definition
from graphopt.kernels.quantize.blocks import empty_wire

#: What runs each op.
TABLE = {
    "quantize_": Implementations(definition.quantize_, cpu.quantize_, "graphopt.kernels.quantize.cuda:quantize_"),
    "requantize_": Implementations(
        definition.requantize_, cpu.requantize_, "graphopt.kernels.quantize.cuda:requantize_"
    ),
    "dequantize_": Implementations(
        definition.dequantize_, cpu.dequantize_, "graphopt.kernels.quantize.cuda:dequantize_"
    ),
    "qsgd": Implementations(definition.qsgd, cpu.qsgd, "graphopt.kernels.quantize.cuda:qsgd"),
    "dequantize_qsgd_": Implementations(
        definition.dequantize_qsgd_, cpu.dequantize_qsgd_, "graphopt.kernels.quantize.cuda:dequantize_qsgd_"
    ),
}


def _wire(
    gradients: list[Tensor],
    residuals: list[Tensor],  # noqa: ARG001
    overflow: Tensor,
    inverse_scale: Tensor | None,  # noqa: ARG001
    parts: int,
) -> Tensor:
    return empty_wire(overflow, [g.numel() for g in gradients], 8, parts)


def _part_of_wire(received: Tensor, gradients: list[Tensor], rank: int, parts: int) -> Tensor:  # noqa: ARG001
    return received.new_empty(received.numel() // parts)


def _packed_wire(
    gradients: list[Tensor],
    overflow: Tensor,
    inverse_scale: Tensor | None,  # noqa: ARG001
    bits: int,
    parts: int,
    *_: int | torch.SymInt,
) -> Tensor:
    return empty_wire(overflow, [g.numel() for g in gradients], bits, parts)


quantize_ = define(
    "quantize_(Tensor(a!)[] gradients, Tensor[] residuals, Tensor(b!) overflow, Tensor? inverse_scale, int parts) "
    "-> Tensor",
    dispatching(TABLE["quantize_"]),
    _wire,
)
requantize_ = define(
    "requantize_(Tensor received, Tensor(a!)[] gradients, int rank, int parts) -> Tensor",
    dispatching(TABLE["requantize_"]),
    _part_of_wire,
)
dequantize_ = define(
    "dequantize_(Tensor wire, Tensor(a!)[] gradients, int copies, Tensor? scale) -> ()",
    dispatching(TABLE["dequantize_"]),
    no_result,
)
qsgd = define(
    "qsgd(Tensor[] gradients, Tensor(b!) overflow, Tensor? inverse_scale, int bits, int parts, int seed, SymInt draw, "
    "int rank) -> Tensor",
    dispatching(TABLE["qsgd"]),
    _packed_wire,
)
dequantize_qsgd_ = define(
    "dequantize_qsgd_(Tensor wire, Tensor(a!)[] gradients, int copies, int bits, Tensor? scale) -> ()",
    dispatching(TABLE["dequantize_qsgd_"]),
    no_result,
)

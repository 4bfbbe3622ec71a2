"""Ops that send only the largest elements of gradients, `torch.ops.graphopt.*`: what they mean.

`sparsify_` takes, of each parameter's x = gradient × inverse_scale + residual (in this order, each rounded), the
`counts[i]` elements of the largest magnitude, exactly: of equal ones those that come first in memory. Zeros are never
sent, and with a `threshold` nothing below it. The result is a wire of shape [bytes], uint8, as
`kernels.sparsify.wire` has it, of the same length whatever is sent. What is not sent stays in the gradient's own
buffer, bit for bit, with zeros where something was: sent + kept = x. Equal elements that were left wait with twice
their size beside newcomers, so that all get their turn.

`sparsify_momentum_` is the velocity of Deep Gradient Compression (Lin et al., ICLR 2018, algorithms 1 and 4, with
momentum factor masking): u = momentum × u + gradient × inverse_scale; v = residual + u; of v the largest are sent as
above. The gradients then hold v and the second result u, of the gradients' shapes; both are zero where something was
sent.

`desparsify_` reads `copies` wires of [bytes] that lie one behind the other, [copies × bytes] of uint8:
gradient = scale × (their sum in this order).

Gradients are fp32, of any shapes and on one device; residuals and momenta are fp32 and, one for one, of their shapes,
and `residuals` may be empty where there is no momentum. `overflow`, `inverse_scale` and `scale` are fp32 scalars on
their device; None stands for 1. `counts` are as many as the gradients, and one beyond a gradient's size means all of
it. `overflow` becomes 1.0 where an x is not finite, and is never reset; what the wire then holds is not specified, but
it can be read. An element's place in the wire is its place in its parameter's memory (of one that is not dense: of its
contiguous copy), so that gradients must be laid out alike on all ranks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from graphopt.kernels.define import Implementations, define, dispatching, no_result
from graphopt.kernels.layout import dense
from graphopt.kernels.sparsify import cpu, definition
from graphopt.kernels.sparsify.wire import sparse_wire_bytes

#: What runs each op.
TABLE = {
    "sparsify_": Implementations(definition.sparsify_, cpu.sparsify_, "graphopt.kernels.sparsify.cuda:sparsify_"),
    "sparsify_momentum_": Implementations(
        definition.sparsify_momentum_, cpu.sparsify_momentum_, "graphopt.kernels.sparsify.cuda:sparsify_momentum_"
    ),
    "desparsify_": Implementations(
        definition.desparsify_, cpu.desparsify_, "graphopt.kernels.sparsify.cuda:desparsify_"
    ),
}


def _wire(
    gradients: list[Tensor],
    residuals: list[Tensor],  # noqa: ARG001
    overflow: Tensor,
    inverse_scale: Tensor | None,  # noqa: ARG001
    counts: list[int],
    threshold: float | None,  # noqa: ARG001
) -> Tensor:
    return overflow.new_empty(sparse_wire_bytes([g.numel() for g in gradients], counts), dtype=torch.uint8)


def _wire_and_momenta(
    gradients: list[Tensor],
    residuals: list[Tensor],
    momenta: list[Tensor],  # noqa: ARG001
    overflow: Tensor,
    inverse_scale: Tensor | None,
    counts: list[int],
    momentum: float,  # noqa: ARG001
) -> tuple[Tensor, list[Tensor]]:
    wire = _wire(gradients, residuals, overflow, inverse_scale, counts, None)
    return wire, [torch.empty_like(dense(gradient)) for gradient in gradients]


sparsify_ = define(
    "sparsify_(Tensor(a!)[] gradients, Tensor[] residuals, Tensor(b!) overflow, Tensor? inverse_scale, int[] counts, "
    "float? threshold) -> Tensor",
    dispatching(TABLE["sparsify_"]),
    _wire,
)
sparsify_momentum_ = define(
    "sparsify_momentum_(Tensor(a!)[] gradients, Tensor[] residuals, Tensor[] momenta, Tensor(b!) overflow, "
    "Tensor? inverse_scale, int[] counts, float momentum) -> (Tensor wire, Tensor[] new_momenta)",
    dispatching(TABLE["sparsify_momentum_"]),
    _wire_and_momenta,
)
desparsify_ = define(
    "desparsify_(Tensor wire, Tensor(a!)[] gradients, int copies, int[] counts, Tensor? scale) -> ()",
    dispatching(TABLE["desparsify_"]),
    no_result,
)

"""What each ONNX operator is in torch: one table for all families."""

from __future__ import annotations

from collections.abc import Mapping

from graphopt.formats.onnx.ops.attention import ATTENTION
from graphopt.formats.onnx.ops.convolutions import CONVOLUTIONS
from graphopt.formats.onnx.ops.elementwise import ELEMENTWISE
from graphopt.formats.onnx.ops.indexing import INDEXING
from graphopt.formats.onnx.ops.losses import LOSSES
from graphopt.formats.onnx.ops.node import Handler
from graphopt.formats.onnx.ops.normalisation import NORMALISATION
from graphopt.formats.onnx.ops.pooling import POOLING
from graphopt.formats.onnx.ops.products import PRODUCTS
from graphopt.formats.onnx.ops.quantisation import QUANTISATION
from graphopt.formats.onnx.ops.recurrent import RECURRENT
from graphopt.formats.onnx.ops.reductions import REDUCTIONS
from graphopt.formats.onnx.ops.resizing import RESIZING
from graphopt.formats.onnx.ops.sequences import SEQUENCES
from graphopt.formats.onnx.ops.shapes import SHAPES
from graphopt.formats.onnx.ops.sources import SOURCES

#: Operators of ONNX's own domain, by name; `If` is there besides, where its condition is known.
OPERATORS: Mapping[str, Handler] = {
    **ATTENTION,
    **CONVOLUTIONS,
    **ELEMENTWISE,
    **INDEXING,
    **LOSSES,
    **NORMALISATION,
    **POOLING,
    **PRODUCTS,
    **QUANTISATION,
    **RECURRENT,
    **REDUCTIONS,
    **RESIZING,
    **SEQUENCES,
    **SHAPES,
    **SOURCES,
}

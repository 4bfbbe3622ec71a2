"""What a user should know of an imported model: where its gradients may differ from those of the model it was."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from onnx import NodeProto

from graphopt.formats.onnx.ops.node import is_known
from graphopt.formats.onnx.weights import WEIGHTS, Uses

#: Names that exporters give to what they made of weights.
_MADE = re.compile(r"(?:onnx::[A-Za-z]+_|val_|_val_)\d+$")
#: Through these a weight reaches a layer as it is.
_ALIASES = ("Gather", "Identity", "Transpose")
_RULE = "pkg.onnxscript.rewriter.rule_name"
_FEW = 3


@dataclass
class Notes:
    """Names of values and operators, noted while a model is built."""

    missing: list[str] = field(default_factory=list)
    made: list[tuple[str, str]] = field(default_factory=list)
    rounded: int = 0
    fused: int = 0
    folded: list[str] = field(default_factory=list)
    shared: list[str] = field(default_factory=list)
    joined: list[str] = field(default_factory=list)
    apart: list[str] = field(default_factory=list)

    def see(self, node: NodeProto, inputs: Sequence[Any]) -> None:
        """Note what a node says of gradients."""
        if node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear") and not all(map(is_known, inputs)):
            self.rounded += 1
        if any(each.key == _RULE and "BatchNorm" in each.value for each in node.metadata_props):
            self.fused += 1

    def tell_weights(self, uses: Uses, weights: set[str]) -> None:
        """Note weights that an exporter made of others, and those that stand in several places."""
        for name in sorted(weights):
            readers = uses.readers.get(name, [])
            if is_made(name):
                folded = any(node.op_type == "Conv" and place in (1, 2) for node, place in readers)
                (self.folded if folded else self.joined).append(name)
            if (
                name not in self.apart
                and sum(place in WEIGHTS.get(node.op_type, ()) or node.op_type in _ALIASES for node, place in readers)
                > 1
            ):
                self.shared.append(name)

    def lines(self) -> tuple[str, ...]:
        """One sentence for each, none where there is nothing to tell."""
        quantised = [name for name, maker in self.made if maker == "DequantizeLinear"]
        constants = [name for name, maker in self.made if maker != "DequantizeLinear"]
        convolutions = max(self.fused, len(self.folded) // 2, min(len(self.folded), 1))
        told = (
            (_named("weights that are not there, made at random", self.missing)),
            (_named("quantised weights, which train in full precision as what they stand for", quantised)),
            (_named("weights that nodes of the file make, each a parameter of its own here", constants)),
            (_named("weights that stand in several places (tied, or merged by the exporter as they were equal), with "
                    "one gradient each, the sum", self.shared)),
            (_named("merged weights (the exporter keeps one of those that were equal), taken apart again", self.apart)),
            (_named("weights that the exporter made of others (transposed, joined), which train as they stand",
                    self.joined)),
            _counted("convolutions with a normalisation that the exporter folded into their weights: it does not "
                     "train, and the statistics of batches are gone (export the model in training mode)", convolutions),
            _counted("operators that round to few bits, and let no gradient through", self.rounded),
        )  # fmt: skip
        return tuple(line for line in told if line)


def is_made(name: str) -> bool:
    """Whether an exporter gave the name, to what it made of weights."""
    return _MADE.match(name) is not None


def _named(what: str, names: Sequence[str]) -> str:
    distinct = list(dict.fromkeys(names))
    few = ", ".join(distinct[:_FEW]) + (", ..." if len(distinct) > _FEW else "")
    return f"{what}: {len(names)}, {few}" if names else ""


def _counted(what: str, count: int) -> str:
    return f"{what}: {count}" if count else ""

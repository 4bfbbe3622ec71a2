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
_MADE = re.compile(r"(?:onnx::(?P<by>[A-Za-z]+)_|val_|_val_)\d+$")
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
            match = _MADE.match(name)
            if match and (match["by"] == "Conv" or any(node.op_type == "Conv" for node, _ in readers)):
                self.folded.append(name)
            if sum(place in WEIGHTS.get(node.op_type, ()) or node.op_type in _ALIASES for node, place in readers) > 1:
                self.shared.append(name)

    def lines(self) -> tuple[str, ...]:
        """One sentence for each, none where there is nothing to tell."""
        quantised = [name for name, maker in self.made if maker == "DequantizeLinear"]
        constants = [name for name, maker in self.made if maker != "DequantizeLinear"]
        told = (
            (self.missing, "{n} weights are not there, and were made at random: {few}"),
            (quantised, "{n} weights are quantised; they train as what they stand for, in full precision: {few}"),
            (constants, "{n} weights are made by nodes of the file, and are parameters of their own: {few}"),
            (self.shared, "{n} weights stand in several places (tied, or merged by the exporter as they were equal); "
             "each has one gradient, the sum: {few}"),
        )  # fmt: skip
        lines = [text.format(n=len(names), few=_few(names)) for names, text in told if names]
        if self.folded or self.fused:
            lines.append(
                f"{max(self.fused, len(self.folded) // 2, 1)} convolutions have a normalisation folded into their "
                "weights by the exporter: it does not train, and batch statistics are gone; export in training mode"
            )
        if self.rounded:
            lines.append(f"{self.rounded} operators round to few bits, and let no gradient through")
        return tuple(lines)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:_FEW]) + (", ..." if len(names) > _FEW else "")

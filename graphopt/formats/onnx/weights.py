"""Which of a file's constants are weights that train: a file says only their numbers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from onnx import NodeProto

#: Inputs of layers that are weights, whatever made them: their place says so.
WEIGHTS: Mapping[str, tuple[int, ...]] = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "DeformConv": (1, 3),
    "Gemm": (1, 2),
    "MatMul": (0, 1),
    "BatchNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "RMSNormalization": (1,),
    "LSTM": (1, 2, 3),
    "GRU": (1, 2, 3),
    "RNN": (1, 2, 3),
    "PRelu": (1,),
}
STATISTICS: Mapping[str, tuple[int, ...]] = {"BatchNormalization": (3, 4)}
#: Inputs that set something: limits, scales, steps, running statistics.
SETTINGS: Mapping[str, tuple[int, ...]] = {
    "BatchNormalization": (3, 4),
    "Clip": (1, 2),
    "DequantizeLinear": (0, 1, 2),
    "Dropout": (1, 2),
    "OneHot": (0, 1, 2),
    "Pad": (1, 2, 3),
    "Pow": (1,),
    "QuantizeLinear": (1, 2),
    "Range": (0, 1, 2),
    "Resize": (1, 2, 3),
    "Upsample": (1,),
    "RotaryEmbedding": (1, 2, 3),
    "SoftmaxCrossEntropyLoss": (1, 2),
    "NegativeLogLikelihoodLoss": (1, 2),
}
#: Weights that are 1 where nothing is known of them; the variance is among them.
ONES: Mapping[str, tuple[int, ...]] = {
    "BatchNormalization": (1, 4),
    "LayerNormalization": (1,),
    "GroupNormalization": (1,),
    "RMSNormalization": (1,),
}
#: Any input of these may be a weight: biases, and scales of channels.
ALIKE = ("Add", "Mul", "Identity")
_ARITHMETIC = {"Add", "Sub", "Mul", "Div", "Where", "Max", "Min", "Equal", "Greater", "Less", "Mod"}
_LAYERS = {"Conv", "ConvTranspose", "MatMul", "Gemm", "Mul"}
#: Values behind a constant that are looked at.
_MOST_LOOKED_AT = 64
#: What may stand between rotary frequencies and their sine.
_MOVES = {"Unsqueeze", "Squeeze", "Cast", "Expand", "Reshape", "Transpose", "MatMul", "Mul", "Concat", "Identity"}
_MOVES |= {"Einsum", "Slice", "Div", "Reciprocal"}


@dataclass(frozen=True)
class Uses:
    """Who reads each value of a graph, and who makes it."""

    readers: Mapping[str, list[tuple[NodeProto, int]]]
    makers: Mapping[str, NodeProto]

    def trains(self, name: str, elements: int, *, floating: bool) -> bool:
        """Whether a constant of so many elements is a weight."""
        readers = self.readers.get(name, [])
        if not floating or not readers:
            return False
        if any(place in WEIGHTS.get(node.op_type, ()) for node, place in readers):
            return True
        if all(place in SETTINGS.get(node.op_type, ()) for node, place in readers):
            return False
        if elements == 1:
            return not all(self._is_number(node, place) for node, place in readers)
        return not self._turns(name)

    def is_missing(self, name: str) -> bool:
        """Whether an input of a model stands where only weights do: such a file was stripped of them."""
        readers = self.readers.get(name, [])
        places = [place in WEIGHTS.get(n.op_type, ()) or place in STATISTICS.get(n.op_type, ()) for n, place in readers]
        return bool(readers) and all(places) and all(node.op_type != "MatMul" and place for node, place in readers)

    def _is_number(self, node: NodeProto, place: int) -> bool:
        """Whether one number is read as a setting of arithmetic; the bias of a layer with one output is none."""
        if node.op_type not in _ARITHMETIC:
            return place in SETTINGS.get(node.op_type, ())
        others = [self.makers.get(other) for number, other in enumerate(node.input) if number != place]
        return not (node.op_type == "Add" and any(o is not None and o.op_type in _LAYERS - {"Mul"} for o in others))

    def _turns(self, name: str) -> bool:
        """Whether all that is made of a value is the angle of a sine or cosine: frequencies are no weights."""
        ahead, seen = [name], {name}
        while ahead:
            readers = self.readers.get(ahead.pop(), [])
            if not readers or len(seen) > _MOST_LOOKED_AT:
                return False
            for node, _ in readers:
                if node.op_type in ("Sin", "Cos"):
                    continue
                if node.op_type not in _MOVES:
                    return False
                new = set(node.output) - seen
                seen |= new
                ahead += new
        return True


def uses_of(nodes: Iterable[NodeProto]) -> Uses:
    """Readers and makers of all values."""
    readers: defaultdict[str, list[tuple[NodeProto, int]]] = defaultdict(list)
    makers: dict[str, NodeProto] = {}
    for node in nodes:
        for place, name in enumerate(node.input):
            readers[name].append((node, place))
        for name in node.output:
            makers[name] = node
    return Uses(readers, makers)

"""Arithmetic, comparisons, activations and casts: element by element, with broadcasting."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from graphopt.base.errors import OnnxError
from graphopt.formats.onnx.ops.node import Handler, OnnxNode, is_known, known, torch_dtype


def _unary(function: Callable[[Tensor], Tensor]) -> Handler:
    def run(_: OnnxNode, x: Tensor) -> Tensor:
        return function(x)

    return run


def _binary(function: Callable[[Any, Any], Tensor]) -> Handler:
    def run(node: OnnxNode, x: Tensor, y: Tensor) -> Tensor:
        y = _aligned(node, x, y)
        return function(x, _plain(y, x)) if not is_known(x) else function(_plain(x, y), y)

    return run


def _variadic(function: Callable[[Any, Any], Tensor]) -> Handler:
    def run(_: OnnxNode, *inputs: Tensor) -> Tensor:
        return reduce(function, inputs)

    return run


def _plain(value: Tensor, other: Tensor) -> Any:
    """A known tensor without dimensions as a number, where that gives the same."""
    if is_known(value) and not is_known(other) and value.dim() == 0 and value.dtype == other.dtype and other.dim():
        return value.item()
    return value


def _aligned(node: OnnxNode, x: Tensor, y: Tensor) -> Tensor:
    """`y` with the dimensions that opsets below 7 gave it by `axis`."""
    axis = node.get("axis")
    if axis is None or not node.get("broadcast", 0) or node.opset >= 7:
        return y
    behind = x.dim() - axis % max(x.dim(), 1) - y.dim()
    return y.reshape(*y.shape, *([1] * max(behind, 0)))


def _divide(x: Any, y: Any) -> Tensor:
    whole = not (x if isinstance(x, Tensor) else y).dtype.is_floating_point
    return torch.div(x, y, rounding_mode="trunc") if whole else torch.div(x, y)


def _power(node: OnnxNode, x: Tensor, y: Tensor) -> Tensor:
    y = _aligned(node, x, y)
    if is_known(y) and not is_known(x) and y.numel() == 1 and y.dim() <= x.dim():
        return torch.pow(x, y.item()).to(x.dtype)
    return torch.pow(x, y).to(x.dtype)


def _mod(node: OnnxNode, x: Tensor, y: Tensor) -> Tensor:
    return torch.fmod(x, y) if node.get("fmod", 0) else torch.remainder(x, y)


def _shift(node: OnnxNode, x: Tensor, y: Tensor) -> Tensor:
    wide = x.to(torch.int64), y.to(torch.int64)
    if node.get("direction") == "LEFT":
        return torch.bitwise_left_shift(*wide).to(x.dtype)
    return torch.bitwise_right_shift(*wide).to(x.dtype)


def _mean(_: OnnxNode, *inputs: Tensor) -> Tensor:
    return reduce(torch.add, inputs) / len(inputs)


def _clip(node: OnnxNode, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    ends: list[Any] = [node.get("min"), node.get("max")]
    for place, given in enumerate((low, high)):
        if given is not None:
            ends[place] = given.item() if is_known(given) else given
    if ends == [None, None]:
        return x
    if any(isinstance(end, Tensor) for end in ends):
        ends = [torch.as_tensor(end, dtype=x.dtype) if end is not None else None for end in ends]
        return torch.clamp(x, *ends)
    if not x.dtype.is_floating_point:
        ends = [None if end is None else int(end) for end in ends]
    return torch.clamp(x, *ends)


def _where(_: OnnxNode, condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return torch.where(condition, x, y)


def _cast(node: OnnxNode, x: Tensor) -> Tensor:
    to = node.get("to")
    if isinstance(to, str):  # opsets below 6
        from onnx import TensorProto

        to = TensorProto.DataType.Value(to)
    dtype = torch_dtype(to)
    if not dtype.is_floating_point and x.dtype.is_floating_point and dtype in (torch.uint8, torch.int8):
        return x.to(torch.int32).to(dtype)
    return x.to(dtype)


def _cast_like(_: OnnxNode, x: Tensor, like: Tensor) -> Tensor:
    return x.to(like.dtype)


def _prelu(node: OnnxNode, x: Tensor, slope: Tensor) -> Tensor:
    if slope.dim() == 1 and x.dim() > 1 and slope.shape[0] == x.shape[1] and node.opset < 7:
        slope = slope.reshape(-1, *[1] * (x.dim() - 2))
    return torch.where(x >= 0, x, slope * x)


def _gelu(node: OnnxNode, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=node.get("approximate", "none"))


def _hard_sigmoid(node: OnnxNode, x: Tensor) -> Tensor:
    return torch.clamp(x * node.get("alpha", 0.2) + node.get("beta", 0.5), 0, 1)


def _selu(node: OnnxNode, x: Tensor) -> Any:
    alpha, gamma = node.get("alpha"), node.get("gamma")
    if alpha is None and gamma is None:
        return F.selu(x)
    return gamma * F.elu(x, 1.67326319217681884765625 if alpha is None else alpha)


def _shrink(node: OnnxNode, x: Tensor) -> Tensor:
    edge, bias = node.get("lambd", 0.5), node.get("bias", 0.0)
    return torch.where(x < -edge, x + bias, torch.where(x > edge, x - bias, torch.zeros_like(x))).to(x.dtype)


def _thresholded(node: OnnxNode, x: Tensor) -> Tensor:
    return torch.where(x > node.get("alpha", 1.0), x, torch.zeros_like(x))


def _is_infinite(node: OnnxNode, x: Tensor) -> Tensor:
    found = torch.zeros_like(x, dtype=torch.bool)
    if node.get("detect_positive", 1):
        found = found | torch.isposinf(x)
    if node.get("detect_negative", 1):
        found = found | torch.isneginf(x)
    return found


def _swish(node: OnnxNode, x: Tensor) -> Tensor:
    alpha = node.get("alpha", 1.0)
    return F.silu(x) if alpha == 1.0 else x * torch.sigmoid(alpha * x)


def _dropout(node: OnnxNode, x: Tensor, ratio: Tensor | None = None, training: Tensor | None = None) -> Any:
    share = float(known(ratio, "ratio").item()) if ratio is not None else float(node.get("ratio", 0.5))
    if training is not None and not bool(known(training, "training_mode").item()):
        share = 0.0 if node.wants(1) else share
    if not 0 <= share < 1:
        raise OnnxError(f"a dropout of {share}")
    kept = node.layer(torch.nn.Dropout(share), x) if share else x
    if not node.wants(1):
        return kept
    if share:
        raise OnnxError("the mask of a dropout is an output, which is not known here")
    return kept, torch.ones_like(x, dtype=torch.bool)


_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs, "Acos": torch.acos, "Acosh": torch.acosh, "Asin": torch.asin, "Asinh": torch.asinh,
    "Atan": torch.atan, "Atanh": torch.atanh, "BitwiseNot": torch.bitwise_not, "Ceil": torch.ceil, "Cos": torch.cos,
    "Cosh": torch.cosh, "Erf": torch.erf, "Exp": torch.exp, "Floor": torch.floor, "HardSwish": F.hardswish,
    "IsNaN": torch.isnan, "Log": torch.log, "Mish": F.mish, "Neg": torch.neg, "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal, "Relu": torch.relu, "Round": torch.round, "Sigmoid": torch.sigmoid,
    "Sign": torch.sign, "Sin": torch.sin, "Sinh": torch.sinh, "Softplus": F.softplus, "Softsign": F.softsign,
    "Sqrt": torch.sqrt, "Tan": torch.tan, "Tanh": torch.tanh, "Identity": lambda x: x,
}  # fmt: skip
_PAIRS: dict[str, Callable[[Any, Any], Tensor]] = {
    "Add": torch.add, "And": torch.logical_and, "BitwiseAnd": torch.bitwise_and, "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor, "Div": _divide, "Equal": torch.eq, "Greater": torch.gt,
    "GreaterOrEqual": torch.ge, "Less": torch.lt, "LessOrEqual": torch.le, "Mul": torch.mul, "Or": torch.logical_or,
    "Sub": torch.sub, "Xor": torch.logical_xor,
}  # fmt: skip

ELEMENTWISE: dict[str, Handler] = {
    **{name: _unary(function) for name, function in _FUNCTIONS.items()},
    **{name: _binary(function) for name, function in _PAIRS.items()},
    "Max": _variadic(torch.maximum),
    "Min": _variadic(torch.minimum),
    "Sum": _variadic(torch.add),
    "Mean": _mean,
    "Pow": _power,
    "Mod": _mod,
    "BitShift": _shift,
    "Clip": _clip,
    "Where": _where,
    "Cast": _cast,
    "CastLike": _cast_like,
    "Celu": lambda node, x: F.celu(x, node.get("alpha", 1.0)),
    "Elu": lambda node, x: F.elu(x, node.get("alpha", 1.0)),
    "LeakyRelu": lambda node, x: F.leaky_relu(x, node.get("alpha", 0.01)),
    "Selu": _selu,
    "PRelu": _prelu,
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "Shrink": _shrink,
    "ThresholdedRelu": _thresholded,
    "IsInf": _is_infinite,
    "Swish": _swish,
    "Dropout": _dropout,
}

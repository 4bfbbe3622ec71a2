"""What makes values of none, or draws them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graphopt.base.errors import OnnxError
from graphopt.formats.onnx.ops.node import Handler, OnnxNode, integers, known, torch_dtype


def _constant(node: OnnxNode) -> Tensor:
    kinds: dict[str, Any] = {
        "value_int": torch.int64, "value_ints": torch.int64, "value_float": torch.float32, "value_floats": torch.float32
    }  # fmt: skip
    for name, dtype in kinds.items():
        if name in node.attributes:
            return torch.tensor(node.get(name), dtype=dtype)
    value = node.get("value")
    if not isinstance(value, Tensor):
        raise OnnxError("a constant that is no tensor of numbers is not known here")
    return value


def _constant_of_shape(node: OnnxNode, shape: Tensor) -> Tensor:
    value: Tensor = node.get("value", torch.zeros(1))
    return torch.full(integers(shape, "shape"), value.reshape(-1)[0].item(), dtype=value.dtype)


def _range(_: OnnxNode, start: Tensor, limit: Tensor, step: Tensor) -> Any:
    ends = [known(each, "range").item() for each in (start, limit, step)]
    return torch.arange(*ends, dtype=start.dtype)


def _eye_like(node: OnnxNode, x: Tensor) -> Any:
    rows, columns = x.shape
    offset = node.get("k", 0)
    places = torch.arange(columns) - torch.arange(rows).reshape(-1, 1)
    return (places == offset).to(node.dtype("dtype", x.dtype))


def _random(uniform: bool, like: bool) -> Handler:
    def run(node: OnnxNode, x: Tensor | None = None) -> Any:
        if like:
            assert x is not None
            base = x if x.dtype.is_floating_point else x.to(torch.float32)
            dtype = node.dtype("dtype", base.dtype)
            drawn = torch.rand_like(base, dtype=dtype) if uniform else torch.randn_like(base, dtype=dtype)
        else:
            dtype, shape = node.dtype("dtype", torch.float32), list(node.get("shape"))
            drawn = torch.rand(shape, dtype=dtype) if uniform else torch.randn(shape, dtype=dtype)
        if uniform:
            low, high = node.get("low", 0.0), node.get("high", 1.0)
            return drawn * (high - low) + low
        return drawn * node.get("scale", 1.0) + node.get("mean", 0.0)

    return run


def _bernoulli(node: OnnxNode, x: Tensor) -> Tensor:
    return torch.bernoulli(x).to(node.dtype("dtype", x.dtype))


def _window(name: str) -> Handler:
    make = {"hann": torch.hann_window, "hamming": None, "blackman": torch.blackman_window}

    def run(node: OnnxNode, size: Tensor) -> Tensor:
        length, periodic = integers(size, "size")[0], bool(node.get("periodic", 1))
        dtype = torch_dtype(node.get("output_datatype", 1))
        function = make[name]
        if function is None:
            return torch.hamming_window(length, periodic, 25 / 46, 21 / 46, dtype=dtype)
        return function(length, periodic, dtype=dtype)

    return run


SOURCES: dict[str, Handler] = {
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "EyeLike": _eye_like,
    "RandomNormal": _random(uniform=False, like=False),
    "RandomUniform": _random(uniform=True, like=False),
    "RandomNormalLike": _random(uniform=False, like=True),
    "RandomUniformLike": _random(uniform=True, like=True),
    "Bernoulli": _bernoulli,
    "HannWindow": _window("hann"),
    "HammingWindow": _window("hamming"),
    "BlackmanWindow": _window("blackman"),
}

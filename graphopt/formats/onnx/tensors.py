"""Tensors of an ONNX file as torch's, from the file itself or from one beside it; nothing else is ever opened."""

from __future__ import annotations

import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor

from graphopt.base.errors import OnnxError
from graphopt.formats.onnx.ops.node import torch_dtype

#: A dimension, and all of a tensor: what is larger is no model that a machine trains.
MOST_ELEMENTS = 2**40
_PACKED = (TensorProto.INT4, TensorProto.UINT4)


class MissingData(Exception):
    """The file that holds a tensor is not there."""


@dataclass(frozen=True)
class TensorKind:
    """What a tensor is, without its numbers."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def kind_of(proto: TensorProto) -> TensorKind:
    """Shape and dtype of a tensor; raises OnnxError where they make no sense, or torch has no such dtype."""
    if any(size < 0 for size in proto.dims) or math.prod(proto.dims) > MOST_ELEMENTS:
        raise OnnxError(f"tensor {proto.name!r} has the sizes {list(proto.dims)}")
    dtype = torch.int8 if proto.data_type in _PACKED else torch_dtype(proto.data_type)
    return TensorKind(tuple(proto.dims), dtype)


def to_torch(proto: TensorProto, folder: Path) -> Tensor:
    """The tensor; raises MissingData where its file is not there, and OnnxError where it is not what it says."""
    kind = kind_of(proto)
    if proto.data_location == TensorProto.EXTERNAL:
        return _external(proto, kind, folder)
    count, size = math.prod(kind.shape), torch.empty((), dtype=kind.dtype).element_size()
    held = len(proto.raw_data) or 16 * sum(
        len(field)
        for field in (proto.float_data, proto.int32_data, proto.int64_data, proto.double_data, proto.uint64_data)
    )
    if count * (size if proto.data_type not in _PACKED else 0.5) > held:
        raise OnnxError(f"tensor {proto.name!r} of sizes {list(kind.shape)} holds fewer numbers than that")
    try:
        array = numpy_helper.to_array(proto)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise OnnxError(f"tensor {proto.name!r} cannot be read: {error}") from None
    return _from_numpy(np.asarray(array), kind)


def _from_numpy(array: np.ndarray, kind: TensorKind) -> Tensor:
    if kind.dtype is torch.bfloat16:
        return torch.from_numpy(array.view(np.uint16).copy().view(np.int16)).view(torch.bfloat16).reshape(kind.shape)
    if array.dtype.kind == "V" or array.dtype.name in ("int4", "uint4"):
        array = array.astype(np.int8)
    return torch.from_numpy(np.ascontiguousarray(array).copy()).reshape(kind.shape)


def _external(proto: TensorProto, kind: TensorKind, folder: Path) -> Tensor:
    entries = {entry.key: entry.value for entry in proto.external_data}
    path = _inside(entries.get("location", ""), folder, proto.name)
    try:
        offset, length = int(entries.get("offset", "0")), int(entries.get("length", "-1"))
    except ValueError:
        raise OnnxError(f"tensor {proto.name!r}: its offset or length is no number") from None
    count = math.prod(kind.shape)
    size = count * torch.empty((), dtype=kind.dtype).element_size()
    if proto.data_type in _PACKED:
        raise OnnxError(f"tensor {proto.name!r}: four bits a number in a file of their own are not known here")
    if offset < 0 or length not in (-1, size):
        raise OnnxError(f"tensor {proto.name!r} of {size:,} bytes stands in its file at {offset} with {length} bytes")
    try:
        # a pipe with a name is not waited for
        with os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or offset + size > status.st_size:
                raise OnnxError(f"tensor {proto.name!r} reaches beyond the end of {path.name}")
            if not count:
                return torch.empty(kind.shape, dtype=kind.dtype)
            file.seek(offset)
            raw = bytearray(file.read(size))
    except FileNotFoundError:
        raise MissingData(path.name) from None
    except OSError as error:
        raise OnnxError(f"tensor {proto.name!r}: {path.name} cannot be read: {error.strerror}") from None
    if len(raw) != size:
        raise OnnxError(f"tensor {proto.name!r}: {path.name} ended early")
    return torch.frombuffer(raw, dtype=kind.dtype).reshape(kind.shape)


def _inside(location: str, folder: Path, name: str) -> Path:
    """The path of a file of numbers; raises OnnxError where it is not inside of the model's folder."""
    pure = PurePosixPath(location)
    outside = pure.is_absolute() or PureWindowsPath(location).drive or ".." in pure.parts or "\\" in location
    if not location or outside or "\0" in location:
        raise OnnxError(f"tensor {name!r} wants to be read from {location!r}: only files in the model's folder are")
    root = folder.resolve()
    try:
        path = (root / location).resolve()
    except (OSError, RuntimeError):
        path = Path("/")
    if root not in path.parents:
        raise OnnxError(f"tensor {name!r} wants to be read from {location!r}, which leads out of the model's folder")
    return path

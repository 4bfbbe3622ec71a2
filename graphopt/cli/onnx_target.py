"""`model.onnx` in place of a user's function: the model of a file, its inputs, and a loss to train it with."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from graphopt.base.errors import OnnxError, UsageError

_DIM = re.compile(r"\s*([^=,]+?)\s*=\s*(\d+)\s*")


def parse_dims(texts: Sequence[str]) -> dict[str, int]:
    """Read `N=8` and `N=8,length=128`: the size of each name; raises UsageError."""
    found: dict[str, int] = {}
    for text in texts:
        for part in text.split(","):
            match = _DIM.fullmatch(part)
            if match is None:
                raise UsageError(f"--dim {text!r}: {part!r} is no NAME=SIZE, as in --dim N=8")
            if found.setdefault(match[1], int(match[2])) != int(match[2]):
                raise UsageError(f"--dim gives {match[1]} two sizes, {found[match[1]]} and {match[2]}")
    return found


def read_onnx(path: str, dims: Sequence[str], *, on_meta: bool, sizes_change: bool) -> tuple[Any, Mapping[str, Any]]:
    """The model, and example inputs by name; what is to be told of it goes to standard error.

    Raises UsageError where onnx is not installed, OnnxError where the file cannot be used.
    """
    check_installed("onnx", f"{path} cannot be read without the package onnx")
    from graphopt.formats.onnx.model import read_model

    found = read_model(path, parse_dims(dims), with_weights=not on_meta, sizes_change=sizes_change)
    for note in found.notes:
        print(f"graphopt: {path}: {note}", file=sys.stderr)
    if not any(each.requires_grad for each in found.module.parameters()):
        raise OnnxError(f"{path} holds nothing that trains: no weights were found in it")
    return found.module, found.example_inputs


def check_installed(package: str, message: str) -> None:
    """Raise UsageError, with the way to install it, where a package is not there."""
    if importlib.util.find_spec(package) is None:
        raise UsageError(f"{message}: pip install 'graphopt[onnx]'")


def mean_of_outputs(outputs: Any) -> Any:
    """The loss of a file that has none: the mean of what it gives, output by output."""
    from torch.utils import _pytree as pytree

    means = [each.float().mean() for each in pytree.tree_leaves(outputs) if each.is_floating_point()]
    if not means:
        raise OnnxError("none of the outputs has a gradient: they hold whole numbers")
    return sum(means[1:], means[0])

"""`train.py:build`: the user's function that gives a model, its inputs and perhaps a loss and an optimizer."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from graphopt.base.errors import UsageError
from graphopt.base.progress import phase
from graphopt.cli.target import Target

#: The example of a model of which there is a configuration alone.
_CONFIG_BATCH, _CONFIG_LENGTH = 2, 4096
_RETURNS = "it must return (model, example_inputs), with loss_fn and optimizer behind them if there are"


def load_target(
    spec: str, device: str | None = None, dims: Sequence[str] | None = None, *, sizes_change: bool = False
) -> Target:
    """Call the function that `spec` names, `FILE.py:FUNCTION` or `package.module:FUNCTION`.

    On the device "meta" nothing is allocated from the start, and `spec` may be a config.json of transformers'. It may
    be an ONNX file, with `dims` ("N=8") for its named sizes; `sizes_change` says that other sizes will be asked for.
    Raises UsageError, naming what is missing or wrong.
    """
    if spec.endswith(".onnx"):
        return _of_onnx(spec, device, dims or (), sizes_change)
    if dims:
        raise UsageError(f"--dim names sizes of an ONNX file, and {spec!r} is none")
    if spec.endswith(".json"):
        if device != "meta":
            raise UsageError(
                f"{spec!r}: a model of which there is a configuration alone needs --meta; plan, sweep and fit take it"
            )
        return _of_config(spec)
    place, _, name = spec.rpartition(":")
    if not place or not name.isidentifier():
        raise UsageError(f"{spec!r} names no function: write FILE.py:FUNCTION, for example train.py:build")
    module = _from_file(Path(place)) if place.endswith(".py") else _from_name(place)
    function = getattr(module, name, None)
    if not callable(function):
        found = ", ".join(n for n, v in vars(module).items() if callable(v) and _is_own(v, module)) or "none"
        raise UsageError(f"{place} has no function {name!r}; it has: {found}")
    try:
        built = _called(function, device)
    except Exception as error:
        raise UsageError(f"{spec} raised {type(error).__name__}: {error}") from error
    return _moved(_checked(built, spec), device)


def _of_onnx(path: str, device: str | None, dims: Sequence[str], sizes_change: bool) -> Target:
    """The model of an ONNX file, with the mean of its outputs for a loss."""
    from graphopt.cli.onnx_target import mean_of_outputs, read_onnx

    model, inputs = read_onnx(path, dims, on_meta=device == "meta", sizes_change=sizes_change)
    return _moved(Target(model, dict(inputs), mean_of_outputs), device)


def _called(function: Callable[[], Any], device: str | None) -> Any:
    if device != "meta":
        return function()
    import torch

    with torch.device("meta"):
        return function()


def _of_config(path: str) -> Target:
    """A causal language model without weights, in its configuration's dtype, its inputs and AdamW."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(path)
        config.use_cache = False
        with torch.device("meta"):  # in float32 where the configuration names no dtype, as from_config makes it
            model = AutoModelForCausalLM.from_config(config, dtype=config.dtype or torch.float32)  # type: ignore[no-untyped-call]
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UsageError(f"{path} is no configuration of a causal language model: {error}") from error
    model.loss_type = "ForCausalLM"  # unset, transformers warns at every step
    length = min(_CONFIG_LENGTH, getattr(config, "max_position_embeddings", _CONFIG_LENGTH))
    ids = torch.zeros(_CONFIG_BATCH, length, dtype=torch.long, device="meta")
    inputs = {"input_ids": ids, "labels": ids, "use_cache": False}
    return Target(model.train(), inputs, None, torch.optim.AdamW(model.parameters()), {"batch": 0, "length": 1})


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"there is no file {str(path)!r} (looked in {Path.cwd()})")
    _load_torch()
    # As `python train.py` would: modules beside the file can be imported.
    sys.path.insert(0, str(path.resolve().parent))
    name = path.stem if path.stem not in sys.modules else f"_graphopt_{path.stem}"
    loader = importlib.util.spec_from_file_location(name, path)
    if loader is None or loader.loader is None:
        raise UsageError(f"{path} cannot be loaded as a Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(loader)
    try:
        loader.loader.exec_module(module)
    except Exception as error:
        raise UsageError(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error
    return module


def _from_name(name: str) -> ModuleType:
    _load_torch()
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise UsageError(f"module {name!r} cannot be imported: {type(error).__name__}: {error}") from error


def _load_torch() -> None:
    """Before the user's own file does, whose seconds those would seem to be."""
    with phase("loading PyTorch"):
        importlib.import_module("torch")


def _is_own(value: object, module: ModuleType) -> bool:
    return getattr(value, "__module__", None) == module.__name__


def _checked(built: Any, spec: str) -> Target:
    from torch import Tensor, nn, optim

    if not isinstance(built, tuple) or len(built) not in (2, 3, 4):
        kind = f"{type(built).__name__} of {len(built)}" if isinstance(built, tuple) else type(built).__name__
        raise UsageError(f"{spec} returned a {kind}; {_RETURNS}")
    model, inputs, loss, optimizer = (*built, None, None)[:4]
    if not isinstance(model, nn.Module):
        raise UsageError(f"{spec}: the model is a {type(model).__name__}, not an nn.Module; {_RETURNS}")
    if not isinstance(inputs, (Tensor, tuple, list, dict)):
        kind = type(inputs).__name__
        raise UsageError(
            f"{spec}: example_inputs is a {kind}; it may be a tensor, a tuple, or a dict of keyword inputs"
        )
    if loss is not None and not callable(loss):
        raise UsageError(f"{spec}: loss_fn is a {type(loss).__name__}, which cannot be called")
    if optimizer is not None and not isinstance(optimizer, optim.Optimizer):
        raise UsageError(
            f"{spec}: the optimizer is a {type(optimizer).__name__}, not a torch.optim.Optimizer; {_RETURNS}"
        )
    return Target(model, tuple(inputs) if isinstance(inputs, list) else inputs, loss, optimizer)


def _moved(target: Target, device: str | None) -> Target:
    if device is None:
        return target
    import torch
    from torch.utils import _pytree as pytree

    def move(leaf: Any) -> Any:
        return leaf.to(device) if isinstance(leaf, torch.Tensor) else leaf

    try:
        model = target.model.to(device)
        return Target(model, pytree.tree_map(move, target.example_inputs), target.loss_fn, target.optimizer)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {device!r} cannot be used: {error}") from error

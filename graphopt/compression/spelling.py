"""Methods of compression as plain data, for what is saved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from graphopt.base.errors import UsageError
from graphopt.compression.choose import Auto
from graphopt.compression.methods import DGC, QSGD, Compression, EightBit, HalfCast, PowerSGD, Threshold, TopK

_KINDS: dict[str, type[Compression]] = {
    kind.__name__: kind for kind in (HalfCast, EightBit, QSGD, TopK, DGC, Threshold, PowerSGD)
}


def spelled(how: Compression | Auto | None) -> dict[str, Any] | None:
    """A method, or the choice among some, as plain data."""
    if how is None:
        return None
    if isinstance(how, Auto):
        return {"method": Auto.__name__, "candidates": [spelled(method) for method in how.candidates]}
    return {"method": type(how).__name__} | {f.name: getattr(how, f.name) for f in fields(how)}


def from_spelled(data: Mapping[str, Any] | None) -> Compression | Auto | None:
    """What was `spelled`; raises UsageError where it is nothing of the kind."""
    if data is not None and data.get("method") == Auto.__name__:
        return Auto(tuple(map(_method, data.get("candidates", ()))))
    return method_from_spelled(data)


def method_from_spelled(data: Mapping[str, Any] | None) -> Compression | None:
    """The method that was `spelled`, no choice; raises UsageError where it is none."""
    return None if data is None else _method(data)


def _method(data: Mapping[str, Any]) -> Compression:
    options = dict(data)
    kind = _KINDS.get(options.pop("method", ""))
    if kind is None or set(options) != {f.name for f in fields(kind)}:
        raise UsageError(f"a saved state names a way to compress that is not known: {dict(data)}")
    return kind(**options)

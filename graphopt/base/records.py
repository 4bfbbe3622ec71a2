"""Frozen dataclasses as checked JSON files: exact round trip, every field checked, never pickle."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from graphopt.base.errors import PlanMismatchError, UsageError

#: A plan of a hundred thousand ops is some ten megabytes; what is larger is not a plan.
MAX_FILE_BYTES = 256 * 2**20

T = TypeVar("T")
_NAMES = {str: "text", bool: "true or false", int: "a whole number from 0 to 2**63 - 1", float: "a number, at least 0"}


def encode(data: object) -> Any:
    """Dataclasses, tuples and mappings as plain JSON data."""
    if dataclasses.is_dataclass(data) and not isinstance(data, type):
        return {field.name: encode(getattr(data, field.name)) for field in dataclasses.fields(data)}
    if isinstance(data, (tuple, list)):
        return [encode(item) for item in data]
    if isinstance(data, Mapping):
        return {str(key): encode(item) for key, item in data.items()}
    return data


def decode(kind: type[T], data: object, where: str) -> T:
    """Read `data` as a `kind`; raises PlanMismatchError naming the field that does not fit."""
    value: T = _read(kind, data, where)
    return value


def write_file(path: str | Path, schema: str, key: str, content: object) -> None:
    """Write `content` under `key`, with its checksum; the file is there whole or not at all."""
    write_text(path, to_text(schema, key, content))


def to_text(schema: str, key: str, content: object) -> str:
    """What `write_file` writes."""
    data = encode(content)
    return json.dumps({"schema": schema, "checksum": checksum(data), key: data}, indent=1, allow_nan=False) + "\n"


def from_bytes(raw: bytes, schema: str, key: str, kind: type[T]) -> T:
    """Read `to_text`, encoded; raises PlanMismatchError naming the field where it is something else."""
    return decode(kind, _content(raw, schema, key), key)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file whole or not at all. Raises UsageError where it cannot be written."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file whole or not at all. Raises UsageError where it cannot be written."""
    target = Path(path).resolve()
    draft = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        draft.write_bytes(content)
        draft.replace(target)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error


def read_file(path: str | Path, schema: str, key: str, kind: type[T]) -> T:
    """Read what `write_file` wrote.

    Raises UsageError where the file cannot be opened, and PlanMismatchError, naming the file and
    the field, where its content is not what was written.
    """
    raw = _raw(path)
    try:
        return from_bytes(raw, schema, key, kind)
    except PlanMismatchError as error:
        raise PlanMismatchError(f"{path}: {error}") from None


def read_object(path: str | Path) -> dict[str, object]:
    """The JSON object that a file holds, whatever its schema; nothing in it is checked. Raises as `read_file`."""
    raw = _raw(path)
    try:
        return _root(raw, "JSON")
    except PlanMismatchError as error:
        raise PlanMismatchError(f"{path}: {error}") from None


def checksum(data: object) -> str:
    """A hash of JSON data that does not depend on the order of keys or on spaces."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def _raw(path: str | Path) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error


def _root(raw: bytes, schema: str) -> dict[str, object]:
    if len(raw) > MAX_FILE_BYTES:
        raise PlanMismatchError(f"larger than {MAX_FILE_BYTES:,} bytes; this is not a {schema} file")
    try:
        root = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise PlanMismatchError(f"not a readable JSON file: {error}") from None
    if not isinstance(root, dict):
        raise PlanMismatchError(f"expected an object, got {type(root).__name__}")
    return root


def _content(raw: bytes, schema: str, key: str) -> object:
    root = _root(raw, schema)
    if root.get("schema") != schema:
        raise PlanMismatchError(f"schema: expected {schema!r}, got {_short(root.get('schema'))}")
    _same_fields(root, {"schema", "checksum", key}, "")
    try:
        same = root["checksum"] == checksum(root[key])
    except (ValueError, RecursionError):
        same = False
    if not same:
        raise PlanMismatchError(
            f"checksum: does not match the content; the {key} was changed after it was saved. Make it again"
        )
    return root[key]


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a field stands twice in one object")
    return fields


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not a number that JSON knows")


def _read(kind: Any, data: object, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _record(kind, data, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        if not isinstance(data, list):
            raise _unexpected("a list", data, where)
        if arguments[-1] is Ellipsis:
            return tuple(_read(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(data))
        if len(data) != len(arguments):
            raise _unexpected(f"a list of {len(arguments)}", data, where)
        return tuple(_read(k, item, f"{where}[{i}]") for i, (k, item) in enumerate(zip(arguments, data, strict=True)))
    if origin is Mapping:
        if not isinstance(data, dict):
            raise _unexpected("an object", data, where)
        return {name: _read(arguments[1], item, f"{where}.{name}") for name, item in data.items()}
    if origin in (typing.Union, types.UnionType):  # the only ones here are "T or None"
        return None if data is None else _read(next(a for a in arguments if a is not type(None)), data, where)
    return _scalar(kind, data, where)


def _scalar(kind: Any, data: object, where: str) -> Any:
    if kind is str and isinstance(data, str):
        return data
    if kind is bool and isinstance(data, bool):
        return data
    if kind is int and isinstance(data, int) and not isinstance(data, bool) and 0 <= data < 2**63:
        return data
    if kind is float and isinstance(data, (int, float)) and not isinstance(data, bool) and 0 <= data < 1e300:
        return float(data)
    raise _unexpected(_NAMES[kind], data, where)


def _record(kind: Any, data: object, where: str) -> Any:
    if not isinstance(data, dict):
        raise _unexpected("an object", data, where)
    _same_fields(data, {field.name for field in dataclasses.fields(kind)}, f"{where}.")
    hints = typing.get_type_hints(kind)
    return kind(**{name: _read(hints[name], item, f"{where}.{name}") for name, item in data.items()})


def _same_fields(data: Mapping[str, object], expected: set[str], prefix: str) -> None:
    for name in sorted(expected - set(data)):
        raise PlanMismatchError(f"{prefix}{name}: missing")
    for name in sorted(set(data) - expected):
        raise PlanMismatchError(f"{prefix}{name[:80]}: not a field that is known here")


def _unexpected(expected: str, data: object, where: str) -> PlanMismatchError:
    return PlanMismatchError(f"{where}: expected {expected}, got {_short(data)}")


def _short(data: object) -> str:
    if isinstance(data, (dict, list)):
        return "an object" if isinstance(data, dict) else f"a list of {len(data)}"
    text = repr(data)
    return text if len(text) <= 80 else text[:77] + "..."

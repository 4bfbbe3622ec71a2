"""Small JSON files that outlive the process: what was measured on a device is not measured again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from graphopt.base.cache_directory import cache_directory


def cache_path(kind: str, key: str) -> Path:
    """The file of `kind` (a schema's name) for `key`: any text that names where the figures hold."""
    return cache_directory() / f"{kind}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def read_entries(path: Path, kind: str, key: str) -> dict[str, Any]:
    """The entries that `write_entries` wrote; empty where the file is absent, damaged or another's."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(data, dict) or data.get("kind") != kind or data.get("key") != key:
        return {}
    entries = data.get("entries")
    return entries if isinstance(entries, dict) else {}


def write_entries(path: Path, kind: str, key: str, entries: dict[str, Any]) -> None:
    """Replace the file in one step. A cache that cannot be written (read-only home) is no error."""
    text = json.dumps({"kind": kind, "key": key, "entries": entries}, indent=0)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).replace(path)
    except OSError:
        if temporary is not None:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()

"""The studies' results on disk."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"


def path_of(part: str) -> Path:
    """The file that a study's results of today go to."""
    return RESULTS / f"studies_{part}_cpu_{datetime.date.today().isoformat()}.json"


def latest(folder: Path, part: str) -> dict[str, Any]:
    """The latest results of a study, row by row, as one model or way may be run again; none where there are none."""
    found: dict[str, Any] = {}
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for path in sorted(folder.glob(f"studies_{part}_cpu_*.json")):
        found = load(path)
        rows |= {(row["model"], row["variant"]): row for row in found.get("rows", [])}
    return {**found, "rows": list(rows.values())} if rows else found


def load(path: Path) -> dict[str, Any]:
    """What a file of results holds."""
    found: dict[str, Any] = json.loads(path.read_text())
    return found

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
    """The latest results of a study; none where there are none."""
    paths = sorted(folder.glob(f"studies_{part}_cpu_*.json"))
    return load(paths[-1]) if paths else {}


def load(path: Path) -> dict[str, Any]:
    """What a file of results holds."""
    found: dict[str, Any] = json.loads(path.read_text())
    return found

"""Where what outlives a process lies."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_directory() -> Path:
    """`$GRAPHOPT_CACHE_DIR`, or `graphopt` in the platform's directory for caches."""
    chosen = os.environ.get("GRAPHOPT_CACHE_DIR")
    if chosen:
        return Path(chosen)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "graphopt"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "graphopt"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "graphopt"

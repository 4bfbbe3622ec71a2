"""Where what outlives a process lies, and whose it is."""

from __future__ import annotations

import atexit
import os
import shutil
import stat
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

from graphopt.base.errors import UsageError


def cache_directory() -> Path:
    """`$GRAPHOPT_CACHE_DIR`, or `graphopt` in the platform's directory for caches; always an absolute path.

    It need not exist. Of the platform's variables an empty or relative one counts as unset, as the XDG Base Directory
    Specification 0.8 asks ("Basics"). Where there is no home either, it is a temporary folder that goes with the
    process, which is said once. Raises UsageError for a relative `$GRAPHOPT_CACHE_DIR`: what it means would depend on
    the current folder, which may be somebody else's.
    """
    chosen = os.environ.get("GRAPHOPT_CACHE_DIR")
    if chosen:
        if not Path(chosen).is_absolute():
            raise UsageError(f"GRAPHOPT_CACHE_DIR must be an absolute path, not {chosen!r}")
        return Path(chosen)
    platforms = _platforms_directory()
    return temporary_directory("there is no home directory") if platforms is None else platforms / "graphopt"


@contextmanager
def private_directory() -> Iterator[Path]:
    """A folder for what is loaded and run: nobody but this user (and root) can write to it.

    That is `cache_directory()`; where others can write to it or own it, a folder of our own inside of it; where that
    is no better, or neither can be made, a temporary one that goes with the process, which is said once. On Linux the
    path leads to the very folder that was looked at, even where another is moved into its place meanwhile.
    """
    cached = cache_directory()
    inside = cached / f"only-{os.geteuid()}" if hasattr(os, "geteuid") else cached
    with ExitStack() as opened:
        for folder in (cached, inside):
            if (found := _opened(folder, opened)) is not None:
                yield found
                return
        yield temporary_directory(f"{cached} cannot be made, or others can write to it")


def is_private(status: os.stat_result) -> bool:
    """Whether only this user and root can write to a file or a folder; those of Windows lie in the user's own."""
    if not hasattr(os, "geteuid"):
        return True
    return status.st_uid in (os.geteuid(), 0) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _opened(folder: Path, until: ExitStack) -> Path | None:
    """A path to a private folder that is good `until` then; None where it is not private or cannot be made."""
    try:
        _make(folder)
        if os.name != "posix":
            return folder
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    until.callback(os.close, descriptor)
    through = Path(f"/proc/self/fd/{descriptor}")
    private = is_private(os.fstat(descriptor))
    return (through if through.is_dir() else folder) if private else None


@cache
def temporary_directory(reason: str) -> Path:
    """A private folder that goes with the process; the reason is said, once."""
    folder = Path(tempfile.mkdtemp(prefix="graphopt-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    warnings.warn(f"{reason}; what graphopt would keep is kept for this process only, in {folder}", stacklevel=3)
    return folder


def _platforms_directory() -> Path | None:
    variable = {"win32": "LOCALAPPDATA", "darwin": ""}.get(sys.platform, "XDG_CACHE_HOME")
    chosen = Path(os.environ.get(variable, ""))
    if chosen.is_absolute():
        return chosen
    try:
        home = Path.home()
    except RuntimeError:  # neither $HOME nor an entry in the table of users
        return None
    below = {"win32": Path("AppData", "Local"), "darwin": Path("Library", "Caches")}.get(sys.platform, Path(".cache"))
    return home / below if home.is_absolute() else None


def _make(folder: Path) -> None:
    """With parents, all for this user alone, as the XDG specification asks and Path.mkdir does not do for parents."""
    if not folder.is_dir():
        if folder.parent != folder:
            _make(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)

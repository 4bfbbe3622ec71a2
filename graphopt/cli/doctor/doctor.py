"""The command: every check in turn, what is wrong first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

from graphopt.base.progress import phase
from graphopt.cli.doctor import devices, surroundings
from graphopt.cli.doctor.finding import Check, Finding, found_by

_TORCH = "install PyTorch anew, as pytorch.org says for this machine"
_REPORT = "please report it, with all of this output"
#: Group, name, check, and what to do where the check itself fails.
_SURROUNDINGS: tuple[tuple[str, str, Check, str], ...] = (
    ("versions", "packages", surroundings.versions, "pip install graphopt"),
    ("cache", "folder", surroundings.cache_folder, "name a folder of your own: GRAPHOPT_CACHE_DIR=/absolute/path"),
    ("compiler", "C++", surroundings.compiler, "name a working compiler with CXX"),
    ("environment", "variables", surroundings.variables, _REPORT),
)
_DEVICES: tuple[tuple[str, str, Check, str], ...] = (
    ("devices", "speed", devices.speeds, _TORCH),
    ("devices", "allocator", devices.allocator, _TORCH),
    ("devices", "offload", devices.link, "offload= needs a folder for temporary files: name one with TMPDIR"),
)


def examine() -> tuple[Finding, ...]:
    """All that is found; without PyTorch nothing is asked of devices."""
    found: list[Finding] = []
    for check in _SURROUNDINGS:
        with phase(f"looking at the {check[0]}"):
            found += _not_again(found_by(*check), found)
    with phase("loading PyTorch"):
        loaded = list(found_by("devices", "PyTorch", devices.torch_itself, _TORCH))
    found += loaded
    if not any(each.problem for each in loaded):
        for check in _DEVICES:
            with phase(f"measuring {check[1]}"):
                found += _not_again(found_by(*check), found)
    return tuple(found)


def _not_again(found: Iterable[Finding], known: Sequence[Finding]) -> list[Finding]:
    """Without what fails for a reason that is known, which has its own way out."""
    reasons = [each.problem for each in known if each.problem]
    return [each for each in found if not any(reason in each.problem for reason in reasons)]


def as_text(found: Sequence[Finding]) -> str:
    """What is wrong, each with a way out, then all that was found by group."""
    wrong = [each for each in found if each.problem]
    count = len(wrong)
    things = "nothing is wrong" if not wrong else "1 thing is wrong" if count == 1 else f"{count} things are wrong"
    lines = [f"graphopt doctor: {things}"]
    for each in wrong:
        lines += [f"  ✗ {each.group}, {each.name}: {_plain(each.problem)}", f"    → {_plain(each.remedy)}"]
    for group, members in groupby(found, key=lambda each: each.group):
        lines += ["", group]
        lines += [f"  {each.name:20} {_plain(each.text)}" for each in members if each.text]
    return "\n".join(lines)


def as_data(found: Sequence[Finding]) -> dict[str, Any]:
    """The same for programs."""
    wrong = [each for each in found if each.problem]
    return {
        "schema": "graphopt.doctor/1",
        "ok": not wrong,
        "problems": [asdict(each) for each in wrong],
        "findings": [asdict(each) for each in found],
    }


def _plain(text: str) -> str:
    """One line, without what would steer a terminal."""
    return "".join(c if c.isprintable() else "�" for c in text)

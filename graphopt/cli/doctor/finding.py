"""What was found, and what is wrong with it. No check ends in a traceback: what fails is what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: its `group`, its name, and in `text` what is there.

    `problem` says what is wrong, "" where nothing is, and `remedy` what to do about it.
    """

    group: str
    name: str
    text: str
    problem: str = ""
    remedy: str = ""


#: Looks at some things of one group.
Check = Callable[[], Iterable[Finding]]


def found_by(group: str, name: str, check: Check, remedy: str) -> Iterator[Finding]:
    """What a check finds; where it fails, that is what is wrong."""
    try:
        yield from check()
    except Exception as error:  # whatever is broken here is to be told of, not to end in
        first = (str(error).strip() or "no message").splitlines()[0]
        yield Finding(group, name, "", f"{type(error).__name__}: {first}", remedy)

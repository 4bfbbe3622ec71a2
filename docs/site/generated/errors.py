"""Every error that is raised for a user, with its exit code."""

from __future__ import annotations

import inspect

import graphopt
from docs.site.generated.markdown import code, table
from graphopt.base import errors as module


def errors() -> str:
    """The exit codes, and the errors with what they derive from and carry."""
    kinds = [each for each in vars(module).values() if inspect.isclass(each) and issubclass(each, Exception)]
    codes = {0: "it worked", 1: "unexpected, or an error without a code of its own"}
    by_code = {code_: [each for each in kinds if each.exit_code == code_] for code_ in range(7)}
    rows = [(number, codes.get(number, ""), names(by_code[number])) for number in by_code]
    return "\n\n".join(["## Exit codes", table(("exit code", "", "errors"), rows), "## Errors", *map(error, kinds)])


def names(kinds: list[type]) -> str:
    """The names as links to their places on the page."""
    return ", ".join(f"[{code(each.__name__)}](#{each.__name__.lower()})" for each in kinds)


def error(kind: type[Exception]) -> str:
    """One error: where it is, what it derives from, what it carries."""
    place = "graphopt" if kind.__name__ in graphopt.__all__ else kind.__module__
    bases = " and ".join(code(base.__name__) for base in kind.__bases__)
    line = f"{code(f'{place}.{kind.__name__}')} is a {bases}; exit code {kind.exit_code}."
    carried = [name for name in inspect.signature(kind.__init__).parameters if name not in ("self", "args", "kwargs")]
    parts = [f"### {code(kind.__name__)}", line, inspect.getdoc(kind) or ""]
    if carried:
        parts.append(f"It carries {', '.join(map(code, carried))}.")
    return "\n\n".join(parts)

"""Every error that is raised for a user, with its exit code."""

from __future__ import annotations

import inspect
import re

import graphopt
from docs.site.generated.markdown import code, table
from graphopt.base import errors as module
from graphopt.base.errors import GraphoptError
from graphopt.cli.cli import make_parser


def errors() -> str:
    """The exit codes, and the errors with what they derive from and carry."""
    kinds = [each for each in vars(module).values() if inspect.isclass(each) and issubclass(each, GraphoptError)]
    # the parser's own words: "exit codes: 0 ok (help too), 1 unexpected, ..."
    said = re.findall(r"(\d) ([^,\d]+)", (make_parser().epilog or "").partition("exit codes: ")[2].replace("\n", " "))
    codes = {int(number): words for number, words in said}
    assert {each.exit_code for each in kinds} <= set(codes)
    rows = [(number, words, names([k for k in kinds if k.exit_code == number])) for number, words in codes.items()]
    return "\n\n".join(
        ["## Exit codes", table(("exit code", "meaning", "errors"), rows), "## Errors", *map(error, kinds)]
    )


def names(kinds: list[type[GraphoptError]]) -> str:
    """The names as links to their places on the page."""
    return ", ".join(f"[{code(each.__name__)}](#{each.__name__.lower()})" for each in kinds)


def error(kind: type[GraphoptError]) -> str:
    """One error: where it is, what it derives from, what it carries."""
    place = "graphopt" if kind.__name__ in graphopt.__all__ else kind.__module__
    bases = " and ".join(code(base.__name__) for base in kind.__bases__)
    line = f"{code(f'{place}.{kind.__name__}')} derives from {bases}; exit code {kind.exit_code}."
    is_own = "__init__" in vars(kind)
    # what __init__ gives to the error, of what it is given
    given = inspect.signature(kind.__init__).parameters if is_own else ()
    carried = [name for name in given if name in kind.__init__.__code__.co_names]
    parts = [f"### {code(kind.__name__)}", line, inspect.getdoc(kind) or ""]
    if carried:
        parts.append(f"It carries {', '.join(map(code, carried))}.")
    return "\n\n".join(parts)

"""Tables and words in Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; a `|` in a cell stays one cell."""
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    for row in rows:
        assert len(row) == len(headings), row
        cells = [str(cell).replace("|", "\\|").replace("\n", " ") for cell in row]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def code(text: str) -> str:
    """`text` as code inside of a line."""
    return f"`{text}`" if text else ""


def linked(text: str, targets: dict[str, str]) -> str:
    """`text` with names that have a place of their own as links; code stays code."""
    if not targets:
        return text
    names = "|".join(sorted(map(re.escape, targets), key=len, reverse=True))

    def link(match: re.Match[str]) -> str:
        quoted, name = match.groups()
        if quoted is not None:
            bare = quoted.strip("`").removesuffix("()")
            return f"[{quoted}]({targets[bare]})" if bare in targets else quoted
        return f"[{name}]({targets[name]})"

    # no ordinary words: those with a capital behind the first letter, or in backticks
    return re.sub(rf"(`[^`]+`)|(?<![\w./])({names})(?![\w.]\w)", lambda m: link(m) if _is_name(m) else m[0], text)


def _is_name(match: re.Match[str]) -> bool:
    return match[1] is not None or bool(re.search(r"[a-z][A-Z]|[A-Z]{2}", match[2]))

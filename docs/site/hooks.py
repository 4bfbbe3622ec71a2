"""What the site does to a page before it is rendered; on GitHub the pages are shown as they are."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

SITE = Path(__file__).resolve().parent
DOCS, ROOT = SITE.parent, SITE.parent.parent
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from docs.site.generated import accuracy, api, commands, errors, schemas  # noqa: E402

#: What stands between `<!-- generated: NAME -->` and `<!-- end -->` on the site.
GENERATED: dict[str, Callable[[], str]] = {
    "api": api.api,
    "commands": commands.commands,
    "errors": errors.errors,
    "schemas": schemas.schemas,
    **{
        f"accuracy.{each.__name__}": each
        for each in (
            accuracy.peaks,
            accuracy.picture,
            accuracy.furthest,
            accuracy.models,
            accuracy.kept,
            accuracy.seconds,
            accuracy.each_time,
            accuracy.loops,
            accuracy.sent,
        )
    },
}
MARKED = re.compile(r"<!-- generated: (\S+) -->.*?<!-- end -->", re.DOTALL)
FENCE = re.compile(r"^```(\w+) title=(\S+)$", re.MULTILINE)
BLOCK = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
#: A link, or code in a line, in which nothing is one.
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)|`[^`\n]+`")


def on_page_markdown(markdown: str, page: Any, **_: object) -> str:
    """The page as the site shows it; called by mkdocs."""
    folder = (DOCS / page.file.src_uri).parent
    markdown = MARKED.sub(lambda match: GENERATED[match[1]](), markdown)
    return FENCE.sub(r'```\1 title="\2"', links_inside(markdown, folder))


def links_inside(markdown: str, folder: Path) -> str:
    """Links to files that are no part of the site become their text."""

    def shown(match: re.Match[str]) -> str:
        text, target = match.groups()
        if target is None or "://" in target or target.startswith("#"):
            return match[0]
        is_inside = (folder / target.partition("#")[0]).resolve().is_relative_to(DOCS)
        return match[0] if is_inside else text

    parts = BLOCK.split(markdown)
    return "".join(part if number % 2 else LINK.sub(shown, part) for number, part in enumerate(parts))

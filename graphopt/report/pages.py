"""Pages from templates: everything in one file, which loads nothing and runs no script but its own."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from graphopt.base.units import format_bytes
from graphopt.report.figures import counted, seconds_text, shape_text, short_paths, signed_percent

_FOLDER = Path(__file__).parent / "page"
_SCRIPTS, _STYLES = ("uplot.min.js", "page.js", "charts.js"), ("uplot.css", "style.css")


def render_page(template: str, **context: Any) -> str:
    """The page of a template; text in `context` is escaped, and `data` is what the page's script reads."""
    # jinja2 takes a tenth of a second to import, which most commands have no use for
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.filters |= {
        "size": format_bytes,
        "signed": signed_percent,
        "duration": seconds_text,
        "short": short_paths,
        "shape": lambda checkpoint: shape_text(checkpoint.shape, checkpoint.dtype),
        "counted": lambda names: counted(names, most=6),
    }
    script, style = _joined(_SCRIPTS), _joined(_STYLES)
    return environment.get_template(template).render(
        **context, script=Markup(script), style=Markup(style), policy=Markup(_policy(script))
    )


def _joined(names: tuple[str, ...]) -> str:
    return "\n".join((_FOLDER / name).read_text(encoding="utf-8") for name in names)


def _policy(script: str) -> str:
    """What the page may do: be styled, and run this very script."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"

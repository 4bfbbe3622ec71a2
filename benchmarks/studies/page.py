"""docs/studies.md: its tables and pictures, made anew from the results."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from benchmarks.studies.results import latest
from benchmarks.studies.subjects import STUDIES
from benchmarks.studies.tables import UNITS, tables

PAGE = Path(__file__).parents[2] / "docs" / "studies.md"
#: A table stands between two comments, the first of which has its name.
PLACE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str, made: Mapping[str, str]) -> str:
    """The text with each table that was made in its place."""

    def one(place: re.Match[str]) -> str:
        first, name, end = place.groups()
        return f"{first}{made[name]}\n{end}" if name in made else place.group()

    return PLACE.sub(one, text)


def show(folder: Path) -> None:
    """Write the page's tables, and one picture a study, from the latest results in a folder."""
    from benchmarks.studies.plots import draw

    made = tables(lambda part: latest(folder, part))
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), made), encoding="utf-8")
    for study, models in STUDIES.items():
        rows = latest(folder, study).get("rows", [])
        of_models = {model: [row for row in rows if row["model"] == model] for model in models}
        if rows:
            goals = {model: make().goal for model, make in models.items()}
            draw(of_models, UNITS, goals, PAGE.parent / f"studies_{study}.svg")

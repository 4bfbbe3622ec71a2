"""The documentation site: it is built without a warning, loads nothing from elsewhere, and leaves nothing out."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

import graphopt
from graphopt.base import errors
from graphopt.cli.cli import make_parser
from tests.house.test_layering import SOURCES

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
#: Between processes of one version, or in the cache: nobody else reads them.
INTERNAL_SCHEMAS = {
    f"graphopt.{name}" for name in ("agreement/1", "curve/1", "device-speed/1", "fsdp/1", "graphs/1", "op-costs/3")
}


def test_the_site_is_built_whole_and_by_itself(tmp_path: Path) -> None:
    """As `python3 run.py docs` does it, once for all that is looked at; a warning of mkdocs ends the build."""
    pytest.importorskip("material", reason="needs the extra docs")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    config = load_config(str(DOCS / "site" / "mkdocs.yml"), site_dir=str(tmp_path), strict=True)
    config.plugins.on_startup(command="build", dirty=False)
    build(config)
    found = {path.relative_to(tmp_path).as_posix(): Loaded(path) for path in tmp_path.rglob("*.html")}
    every_page_is_there_and_shown_as_it_is_meant(found)
    no_page_loads_anything_from_elsewhere(tmp_path, found)
    the_reference_has_every_public_name(found)
    the_reference_has_every_command_option_and_schema(found)


class Loaded(HTMLParser):
    """What a page makes a browser load, its text, and the names of its places."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.places: set[str] = set()
        self.words: list[str] = []
        self.paragraphs: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.places |= {given["id"]} if "id" in given else set()
        self.addresses += [value for name, value in given.items() if name in ("src", "srcset", "data", "poster")]
        self.addresses += [given["href"]] if tag == "link" and "href" in given else []
        self.addresses += re.findall(r"url\((.*?)\)", given.get("style", ""))
        self.addresses += ["mermaid, which is loaded from elsewhere"] if "mermaid" in given.get("class", "") else []
        self.paragraphs += [""] if tag == "p" else []

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self.paragraphs:
            self.paragraphs[-1] += data

    @property
    def text(self) -> str:
        return "".join(self.words)


def every_page_is_there_and_shown_as_it_is_meant(found: dict[str, Loaded]) -> None:
    written = {path.relative_to(DOCS).with_suffix(".html").as_posix() for path in DOCS.rglob("*.md")}
    assert set(found) == written - {"pypi.html"} | {"404.html"}
    mark = re.compile(r"\s*(\||- |```|<!--)")
    raw = [(name, words[:40]) for name, page in found.items() for words in page.paragraphs if mark.match(words)]
    assert not raw, "Markdown that was taken for words"
    assert not [name for name, page in found.items() if "run.py docs" in page.text]  # what GitHub shows in their place


def no_page_loads_anything_from_elsewhere(site: Path, found: dict[str, Loaded]) -> None:
    loaded = {(name, each) for name, page in found.items() for each in page.addresses}
    assert not [pair for pair in loaded if re.match(r"(\w+:)?//|mermaid", pair[1])]
    elsewhere = re.compile(r"(?:url\(|@import )[\"']?(?:\w+:)?//")
    sheets = list(site.rglob("*.css"))
    assert sheets and not [path.name for path in sheets if elsewhere.search(path.read_text(encoding="utf-8"))]
    missing = [(name, each) for name, each in loaded if not each.startswith("data:") and not is_there(site, name, each)]
    assert not missing


def is_there(site: Path, page: str, address: str) -> bool:
    path = address.partition("?")[0].partition("#")[0]
    return page == "404.html" or ((site / page).parent / path).exists()


def the_reference_has_every_public_name(found: dict[str, Loaded]) -> None:
    places = found["reference/api.html"].places | found["reference/errors.html"].places
    assert not [name for name in graphopt.__all__ if not {name.lower(), f"graphopt{name.lower()}"} & places]
    kinds = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, Exception)]
    assert not [each.__name__ for each in kinds if each.__name__.lower() not in found["reference/errors.html"].places]


def the_reference_has_every_command_option_and_schema(found: dict[str, Loaded]) -> None:
    text = found["reference/commands.html"].text
    (commands,) = (each for each in make_parser()._actions if each.choices and each.dest == "command")
    parsers: dict[str, object] = dict(commands.choices)  # type: ignore[arg-type]
    options = {word for each in parsers.values() for word in re.findall(r"--[\w-]+", each.format_help())}  # type: ignore[attr-defined]
    assert set(parsers) <= found["reference/commands.html"].places
    assert not [word for word in options - {"--help"} if word not in text]
    known = {name for path in SOURCES.values() for name in re.findall(r"graphopt\.[\w-]+/\d+", path.read_text("utf-8"))}
    shown = set(re.findall(r"graphopt\.[\w-]+/\d+", found["reference/schemas.html"].text))
    assert known == shown | INTERNAL_SCHEMAS


def marks() -> Iterator[str]:
    for path in DOCS.rglob("*.md"):
        yield from re.findall(r"<!-- generated: (\S+) -->", path.read_text(encoding="utf-8"))


def test_each_generated_part_stands_on_one_page() -> None:
    assert sorted(marks()) == sorted(hooks().GENERATED)


def hooks():  # type: ignore[no-untyped-def]
    spec = importlib.util.spec_from_file_location("site_hooks", DOCS / "site" / "hooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_links_that_lead_out_of_the_site_become_words() -> None:
    text = "[in](numerics.md#optimize), [`out`](../run.py), `[code](../run.py)`\n\n```python\n[x](../run.py)\n```\n"
    shown = "[in](numerics.md#optimize), `out`, `[code](../run.py)`\n\n```python\n[x](../run.py)\n```\n"
    assert hooks().links_inside(text, DOCS) == shown


def test_tables_of_accuracy_tell_what_was_over_and_by_how_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from docs.site.generated import accuracy

    inside = accuracy.Peak("r", "a", 1000, 1000, 990)
    over = accuracy.Peak("r", "b", 1000, 1000, 1000 + 2048)
    without = accuracy.Peak("r", "c", None, 500, 500)
    row = accuracy.line(accuracy.MeasuredRun("r", "r.json", (inside, over, without), 3))
    assert row[1:4] == (3, "1 of 2", 3) and row[-1] == "2.0 KiB" and row[4].startswith("0.3281 to 1.0101")
    for name in ("matrix_cpu.json", "matrix_cpu_2026-11-29.json", "matrix_cpu_2026-12-01.json", "matrix_cpu_more.json"):
        (tmp_path / name).write_text("[]")
    monkeypatch.setattr(accuracy, "RESULTS", tmp_path)
    assert accuracy.newest("matrix_cpu").name == "matrix_cpu_2026-12-01.json"


def test_what_troubleshooting_quotes_is_said_somewhere() -> None:
    text = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = [one for line in re.findall(r"^You see .*$", text, re.MULTILINE) for one in re.findall(r"`([^`]+)`", line)]
    (table,) = re.findall(r"\| you see \| what to do \|\n\|---\|---\|\n((?:\|.*\n)+)", text)
    quoted += re.findall(r"^\| `([^`]+)`", table, re.MULTILINE)
    sources = [path.read_text(encoding="utf-8") for path in SOURCES.values()]
    names = {name for name in graphopt.__all__ if name.endswith("Error")}
    assert len(quoted) > 15
    assert not [each for each in quoted if each not in names and not any(each in source for source in sources)]

"""Everything that README.md and docs/ show is run as it stands there, and what they name is there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import pytest

from graphopt.base import errors
from graphopt.cli import cli
from tests.house.test_layering import LEVEL
from tests.support.ranks import run_program

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = ROOT / "docs"
MOST_WORDS, LONGEST_SENTENCE = 1400, 40


@dataclass(frozen=True)
class Page:
    """A page of the documentation: its text, and the blocks of code in it."""

    path: Path

    @property
    def name(self) -> str:
        """The path below docs/; README.md is beside it."""
        return self.path.relative_to(DOCS).as_posix() if self.path.is_relative_to(DOCS) else self.path.name

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def blocks(self) -> list[tuple[str, str, str]]:
        """Language, title and text of each block of code."""
        return re.findall(r"```(\w+)(?: title=(\S+))?\n(.*?)```", self.text, re.DOTALL)

    @property
    def programs(self) -> list[str]:
        """The Python that is no file: a program each block where the page says so, else one program in all."""
        blocks = [text for kind, title, text in self.blocks if kind == "python" and not title]
        return blocks if "is a program of its own" in self.text else ["\n".join(blocks)] if blocks else []

    @property
    def files(self) -> dict[str, str]:
        return {title: text for _, title, text in self.blocks if title}

    @property
    def commands(self) -> list[str]:
        lines = [line for kind, _, text in self.blocks if kind == "bash" for line in text.splitlines()]
        return [line.partition("#")[0].strip() for line in lines]

    @property
    def ours(self) -> list[list[str]]:
        return [shlex.split(line) for line in self.commands if line.startswith("graphopt ")]

    @property
    def prose(self) -> str:
        """The text without code, tables, headings and lists of layers."""
        text = re.sub(r"```.*?```|<!--.*?-->", "", self.text, flags=re.DOTALL)
        return "\n".join(line for line in text.splitlines() if not line.startswith(("|", "#", "!", "base <")))


README = Page(ROOT / "README.md")
PAGES = {page.name: page for page in (README, *map(Page, sorted(DOCS.rglob("*.md"))))}
#: Each once, where several pages show the same.
PROGRAMS = {text: (name, number) for name, page in PAGES.items() for number, text in enumerate(page.programs)}
#: Programs for several processes; other files are for the command line.
TOGETHER = [
    (name, title) for name, page in PAGES.items() for title, text in page.files.items() if "init_process_group" in text
]


def test_every_block_of_code_is_of_a_kind_that_is_run_or_is_said_to_be_output() -> None:
    kinds = {(kind, title.partition(".")[2]) for page in PAGES.values() for kind, title, _ in page.blocks}
    assert kinds == {("python", ""), ("python", "py"), ("bash", ""), ("json", "json"), ("text", "")}


@pytest.mark.fast(1)
@pytest.mark.parametrize(("name", "number"), PROGRAMS.values())
def test_python_on_the_pages_runs(name: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(PAGES[name].programs[number], name, "exec"), {})


def test_commands_run_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of all pages, which show the same files, each once."""
    monkeypatch.chdir(tmp_path)
    for page in PAGES.values():
        for title, text in page.files.items():
            assert not Path(title).exists() or Path(title).read_text(encoding="utf-8") == text
            Path(title).write_text(text, encoding="utf-8")
    for words in dict.fromkeys(tuple(words) for page in PAGES.values() for words in page.ours):
        assert cli.main(words[1:]) == 0, capsys.readouterr().err


def test_every_command_is_shown() -> None:
    assert {words[1] for words in PAGES["cli.md"].ours} == {"plan", "verify", "sweep", "fit", "solve", "diff"}
    help_text = cli.make_parser().format_help()
    shown = re.findall(r"^\| `(\w+)` \| .* \| (?:yes|no) \|$", PAGES["cli.md"].text, re.MULTILINE)
    assert shown == re.findall(r"^    (\w+) ", help_text, re.MULTILINE)


@pytest.mark.fast(1)
@pytest.mark.parametrize(("name", "title"), TOGETHER)
def test_two_processes_run_it(name: str, title: str, tmp_path: Path) -> None:
    (tmp_path / title).write_text(PAGES[name].files[title], encoding="utf-8")
    if title != "train_together.py":  # one is started in the way that all pages show, the others at less cost
        run_program(2, tmp_path / title)
        return
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*start, tmp_path / title], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("uncompressed") >= 2 or done.stdout.count("compression") >= 2


def test_the_two_commands_are_there() -> None:
    """They would run this test again, so only their being known is checked; CI runs them."""
    others = [line for page in PAGES.values() for line in page.commands if not line.startswith("graphopt ")]
    assert others == ["python3 run.py demo", "python3 run.py test"]
    shown = subprocess.run([sys.executable, ROOT / "run.py", "--help"], capture_output=True, text=True)
    assert shown.returncode == 0 and all(f"\n  {line.split()[2]} " in shown.stdout for line in others)
    assert subprocess.run([sys.executable, ROOT / "run.py", "nonsense"], capture_output=True).returncode == 2
    assert "python3 run.py test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_every_exit_code_is_named() -> None:
    codes = {kind.exit_code for kind in vars(errors).values() if hasattr(kind, "exit_code")} | {0}
    assert codes == {int(code) for code in re.findall(r"^\| (\d) \|", PAGES["cli.md"].text, re.MULTILINE)}
    (line,) = (line for line in README.text.splitlines() if line.startswith("Exit codes: "))
    assert codes == {int(code) for code in re.findall(r"\d", line)}


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_somewhere(name: str) -> None:
    page = PAGES[name]
    for link in re.findall(r"\]\(([^)]+)\)", re.sub(r"```.*?```", "", page.text, flags=re.DOTALL)):
        path, _, place = link.partition("#")
        target = (page.path.parent / path).resolve() if path else page.path
        assert target.exists() and target.is_relative_to(ROOT), link
        assert not place or place in headings(target), link


def headings(path: Path) -> set[str]:
    """Names by which a page's headings can be linked to."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", PAGES)
def test_benchmarks_that_are_named_are_there(name: str) -> None:
    text = PAGES[name].text
    for module in re.findall(r"python -m (benchmarks[\w.]+)", text):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
    for path in re.findall(r"`((?:benchmarks|tests|examples)/[\w/.]+)`", text):
        assert (ROOT / path).exists(), path


def test_the_readme_is_short() -> None:
    assert len(README.text.split()) <= MOST_WORDS


@pytest.mark.parametrize("name", PAGES)
def test_no_sentence_is_long(name: str) -> None:
    paragraphs = re.split(r"\n\s*\n|\n(?=[-*] |\d+\. )", PAGES[name].prose)
    sentences = [sentence for paragraph in paragraphs for sentence in re.split(r"(?<=[.!?])\s+", paragraph)]
    assert not [sentence for sentence in sentences if len(sentence.split()) > LONGEST_SENTENCE]


@pytest.mark.parametrize("name", ["README.md", "architecture.md"])
def test_the_rule_of_the_layers_is_the_one_that_is_tested(name: str) -> None:
    (rule,) = (line for line in PAGES[name].text.splitlines() if line.startswith("base <"))
    chains = [[step.split(" | ") for step in chain.split(" < ")] for chain in rule.split("; ")]
    assert {folder for chain in chains for step in chain for folder in step} == set(LEVEL) - {"", "__main__"}
    for chain in chains:
        levels = [{LEVEL[folder] for folder in step} for step in chain]
        assert all(max(below) < min(above) for below, above in pairwise(levels))

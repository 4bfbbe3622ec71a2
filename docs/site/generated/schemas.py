"""The JSON that commands write, shown by running them on a small model."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docs.site.generated.markdown import code, table
from graphopt.cli.cli import main

TRAIN = """\
import torch
from torch import nn


def build():
    model = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))
    return model, (torch.randn(16, 8), torch.randn(16, 8)), nn.functional.mse_loss
"""
PRICED = ("--cost-model", "roofline")
#: Items of a list, keys of an object below the first level, and letters of a text that an example shows.
MOST_ITEMS, MOST_KEYS, MOST_LETTERS = 1, 8, 72


@dataclass(frozen=True)
class Shown:
    """A command whose JSON is shown; what it `writes` is shown in place of what it prints."""

    title: str
    says: str
    words: tuple[str, ...]
    writes: str = ""


#: In an order in which each finds the files that it reads.
SHOWN = (
    Shown(
        "A problem",
        "What planners see, and what `solve` reads. [The fields](../cli.md#solve) and their bounds are on the page of "
        "the command line.",
        ("plan", "train.py:build", "--mem-budget", "1MiB", *PRICED, "--problem-out", "problem.json"),
        "problem.json",
    ),
    Shown("What solve prints", "", ("solve", "problem.json", "--mem-budget", "1MiB", "--json")),
    Shown(
        "A plan",
        "A plan file: what `Plan.save` writes and `Plan.load` reads. The checksum is over the plan; a file that was "
        "changed is refused. Its fields are those of `Plan`, `GraphPlan` and `Checkpoint` in [the API](api.md).",
        ("plan", "train.py:build", "--mem-budget", "1MiB", *PRICED, "--save-plan", "plan.json"),
        "plan.json",
    ),
    Shown(
        "A report",
        "`plan` prints it, and `verify` under `report`. Fields are those of `Report` in [the API](api.md), with the "
        "figures that follow from them in front.",
        ("plan", "train.py:build", "--mem-budget", "1MiB", *PRICED, "--json"),
    ),
    Shown("What verify prints", "", ("verify", "train.py:build", "--plan", "plan.json", *PRICED, "--json")),
    Shown("A curve", "", ("sweep", "train.py:build", *PRICED, "--json")),
    Shown(
        "Sizes",
        "Of `sweep --over`. Formulas are texts that sympy reads.",
        ("sweep", "train.py:build", "--over", "batch=4:8", "--mem-budget", "1MiB", *PRICED, "--json"),
    ),
    Shown("What fits", "", ("fit", "train.py:build", "--mem-budget", "1MiB", *PRICED, "--json")),
    Shown(
        "An error",
        "Any command with `--json` prints this where it fails, and ends with that exit code. Which fields there are "
        "besides depends on [the error](errors.md).",
        ("plan", "train.py:build", "--mem-budget", "1KiB", *PRICED, "--json"),
    ),
)


def schemas() -> str:
    """Each kind of JSON: the command, what it wrote while the site was built, and the keys."""
    with workplace():
        return "\n\n".join(section(each, run(each)) for each in SHOWN)


def section(shown: Shown, data: dict[str, Any]) -> str:
    """One kind of JSON."""
    name = data.get("schema")
    words = [f'The value of `schema` is `"{name}"`.'] if name else []
    example = json.dumps(shortened(data), indent=1, ensure_ascii=False)
    parts = [f"## {shown.title}", " ".join([*filter(None, [shown.says]), *words])]
    parts += [f"```text\ngraphopt {' '.join(shown.words)}\n```", f"```json\n{example}\n```"]
    parts.append(table(("key", "value"), [(code(key), kind(value)) for key, value in data.items()]))
    return "\n\n".join(filter(None, parts))


def run(shown: Shown) -> dict[str, Any]:
    """What the command prints, or writes."""
    printed, told = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(told):
        exit_code = main(list(shown.words))
    text = Path(shown.writes).read_text(encoding="utf-8") if shown.writes else printed.getvalue()
    data: dict[str, Any] = json.loads(text)
    assert exit_code == data.get("error", {}).get("exit_code", 0), told.getvalue()
    return data


@contextlib.contextmanager
def workplace() -> Iterator[None]:
    """An empty folder with the model in it, in which commands run."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "train.py").write_text(TRAIN, encoding="utf-8")
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def shortened(value: Any, depth: int = 0) -> Any:
    """As much of the data as shows what it is; what is left out is counted."""
    if isinstance(value, dict):
        keys = list(value) if depth < 1 or len(value) <= MOST_KEYS + 1 else list(value)[:MOST_KEYS]
        left = {} if len(keys) == len(value) else {"…": f"{len(value) - len(keys)} more"}
        return {key: shortened(value[key], depth + 1) for key in keys} | left
    if isinstance(value, list):
        simple = all(isinstance(item, (int, float)) for item in value) and len(value) <= 4
        items = value if simple else value[:MOST_ITEMS]
        return [shortened(item, depth + 1) for item in items] + (
            [f"… {len(value) - len(items)} more"] if len(items) < len(value) else []
        )
    if isinstance(value, str) and len(value) > MOST_LETTERS:
        return f"{value[:MOST_LETTERS]}…"
    return value


def kind(value: Any) -> str:
    """The kind of a value in words."""
    if isinstance(value, list):
        return f"list, here of {len(value)}: {kind(value[0])}" if value else "list, here empty"
    if isinstance(value, dict):
        return "object"
    names = {bool: "true or false", int: "whole number", float: "number", str: "text", type(None): "null here"}
    return names[type(value)]

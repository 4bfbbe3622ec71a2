"""Imports point down only, and what is said to need no torch needs none."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent

#: Lowest first. A folder is a layer: its modules may import each other and what stands before them.
#: Two of one rank do not import each other. "" is `graphopt/__init__.py`.
LAYERS = (
    *(("base",), ("problem",), ("planners",), ("device",), ("kernels",), ("compression",), ("graph",)),
    ("cost_models", "passes"),
    *(("emit",), ("plan",)),
    ("capture", "report"),
    ("run",),
    ("step", "verify"),
    ("ddp", "formats"),
    *(("api",), ("",), ("cli",), ("__main__",)),
)
#: The same inside `planners/`: the planners themselves, one file each, stand above their tools.
PLANNER_LAYERS = (
    *(("native",), ("study",), ("curves",), ("schedules",)),
    ("bounds", "orders", "retention"),
    *(("moves",), ("chains",), ("",)),
)
SIBLINGS = {"cost_models", "passes"}
#: These need no torch.
WITHOUT_TORCH = (
    "base",
    "problem",
    "planners",
    "cli.cli",
    "cli.commands",
    "__main__",
    "formats.graph_file",
    "formats.problem_graph",
    "report.data",
    "report.text",
    "report.html",
    "report.json",
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
SOURCES = {
    ".".join(path.relative_to(base).with_suffix("").parts).removesuffix("__init__").rstrip("."): path
    for base, paths in (
        (ROOT / "graphopt", [p for p in (ROOT / "graphopt").rglob("*.py") if p.parts[-2] not in SIBLINGS]),
        (ROOT, [p for name in SIBLINGS for p in (ROOT / name).rglob("*.py")]),
    )
    for path in paths
}


def imports(module: str) -> set[str]:
    """Every module that a source file imports, inside functions too, TYPE_CHECKING blocks too."""
    found = set()
    for node in ast.walk(ast.parse(SOURCES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {n if n.removeprefix("graphopt.") in SOURCES else node.module for n in names}
    return found


def layer(module: str) -> str:
    """The folder that a module is in."""
    folder = module if module == "__main__" else module.partition(".")[0]
    assert folder in LEVEL, f"graphopt/{folder}/ has no place in LAYERS of {Path(__file__).name}"
    return folder


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_imports_point_down(module: str) -> None:
    here = layer(module)
    for name in imports(module):
        assert name.partition(".")[0] not in SIBLINGS, f"{module} must import graphopt.{name}"
        if name.partition(".")[0] != "graphopt":
            continue
        there = layer(name.removeprefix("graphopt").lstrip("."))
        assert there == here or LEVEL[there] < LEVEL[here], f"{module} imports {name}, which is not below it"


def planner_level(module: str) -> int:
    """The rank of the folder of `planners/` that a module is in."""
    return next(level for level, names in enumerate(PLANNER_LAYERS) if planner_folder(module) in names)


def planner_folder(module: str) -> str:
    """The folder of `planners/` that a module is in; none for the planners themselves."""
    return module.removeprefix("planners").lstrip(".").rpartition(".")[0]


@pytest.mark.parametrize("module", sorted(m for m in SOURCES if f"{m}.".startswith("planners.")))
def test_imports_of_planners_point_down(module: str) -> None:
    for name in imports(module):
        there = name.removeprefix("graphopt.")
        if there.startswith("planners.") and planner_folder(there) != planner_folder(module):
            assert planner_level(there) < planner_level(module), f"{module} imports {name}, which is not below it"


TORCHLESS = sorted(m for m in SOURCES if any(f"{m}.".startswith(f"{name}.") for name in WITHOUT_TORCH))


@pytest.mark.parametrize("module", TORCHLESS)
def test_these_files_name_no_torch(module: str) -> None:
    assert not {name for name in imports(module) if name.partition(".")[0] in ("torch", "transformers")}


def test_importing_them_loads_no_torch() -> None:
    modules = ", ".join(f"graphopt.{m}" for m in TORCHLESS if m != "__main__")
    code = f"import sys, {modules}\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

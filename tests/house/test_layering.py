"""Imports point down only, and what is said to need no torch needs none."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent

#: Lowest first. A folder is a layer: its modules may import each other and what stands before them.
#: Two of one rank do not import each other. "" is `graphopt/__init__.py`.
LAYERS = (
    *(("base",), ("problem",), ("planners",), ("device",), ("kernels",), ("compression",), ("graph",)),
    ("cost_models", "passes"),
    *(("emit",), ("lower",), ("plan",)),
    ("capture", "report"),
    ("run",),
    ("step", "verify"),
    ("ddp", "formats", "fsdp"),
    *(("api",), ("",)),
    ("cli", "integrations"),
    ("__main__",),
)
#: The same inside of the folders that have folders; "" are a folder's own files, which stand above its tools.
INNER_LAYERS = {
    "planners": (
        *(("native",), ("study",), ("curves",), ("schedules",)),
        ("bounds", "orders", "retention"),
        *(("moves",), ("chains",), ("",)),
    ),
    "capture": (("mends", "recurrent", "repeated"), ("",)),
    "run": (("model",), ("graphs",), ("watch",), ("calls",), ("",)),
}
SIBLINGS = {"cost_models", "passes"}
#: These need no torch.
WITHOUT_TORCH = (
    "base",
    "problem",
    "planners",
    "cli.cli",
    "cli.commands",
    "cli.doctor.surroundings",
    "__main__",
    "formats.graph_file",
    "formats.problem_graph",
    "report.data",
    "report.diff",
    "report.text",
    "report.html",
    "report.json",
    "report.notebook",
    "report.timeline",
    "report.traces.chrome",
    "report.traces.snapshot",
    "report.traces.timeline",
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


def first_imports(module: str) -> set[str]:
    """What is imported, or named in annotations, before a function is called."""
    found, waiting = set(), list(ast.parse(SOURCES[module].read_text(encoding="utf-8")).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If):
            waiting += [*node.body, *node.orelse]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {n if n.removeprefix("graphopt.") in SOURCES else node.module for n in names}
    return {name.removeprefix("graphopt.") for name in found if name.startswith("graphopt.")}


def test_no_files_import_each_other_in_a_circle() -> None:
    graph = nx.DiGraph((module, name) for module in SOURCES for name in first_imports(module) if name in SOURCES)
    assert [circle for circle in nx.strongly_connected_components(graph) if len(circle) > 1] == []


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


def inner_level(module: str) -> int:
    """The rank of a module's folder among those of its layer."""
    inside = INNER_LAYERS[layer(module)]
    assert any(inner_folder(module) in names for names in inside), f"{module}: its folder has no place in INNER_LAYERS"
    return next(level for level, names in enumerate(inside) if inner_folder(module) in names)


def inner_folder(module: str) -> str:
    """The folder of its layer that a module is in; none for the layer's own files."""
    return module.partition(".")[2].rpartition(".")[0]


@pytest.mark.parametrize("module", sorted(m for m in SOURCES if m.partition(".")[0] in INNER_LAYERS))
def test_imports_inside_of_a_layer_point_down(module: str) -> None:
    for name in imports(module):
        there = name.removeprefix("graphopt.")
        if there.partition(".")[0] == layer(module) and inner_folder(there) != inner_folder(module):
            assert inner_level(there) < inner_level(module), f"{module} imports {name}, which is not below it"


TORCHLESS = sorted(m for m in SOURCES if any(f"{m}.".startswith(f"{name}.") for name in WITHOUT_TORCH))


@pytest.mark.parametrize("module", TORCHLESS)
def test_these_files_name_no_torch(module: str) -> None:
    assert not {name for name in imports(module) if name.partition(".")[0] in ("torch", "transformers")}


def test_importing_them_loads_no_torch() -> None:
    modules = ", ".join(f"graphopt.{m}" for m in TORCHLESS if m != "__main__")
    code = f"import sys, {modules}\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_inductor_is_loaded_only_by_those_who_compile_with_it() -> None:
    """That takes a second of a process's start."""
    code = "import sys, graphopt.api.optimize, graphopt.api.train_step, graphopt.api.backend\n"
    code += "sys.exit(bool({'torch._inductor.compile_fx', 'torch._inductor.lowering'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

"""Rules that the whole package keeps: one name for one thing, short files, documented functions, private names private.

What does not keep them yet is listed below; the lists may only become shorter.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from functools import cache

from tests.house.test_layering import SOURCES

MOST_LINES, MOST_FUNCTION_LINES = 350, 60

SAME_NAMES: set[str] = set()
SILENT: set[str] = set()
LONG_FILES: set[str] = set()
LONG_FUNCTIONS = {
    "api.train_step.train_step",
}
PRIVATE_READS: set[tuple[str, str]] = set()

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(SOURCES[module].read_text(encoding="utf-8"))


def classes(module: str) -> Iterator[ast.ClassDef]:
    return (node for node in ast.walk(tree_of(module)) if isinstance(node, ast.ClassDef))


def functions(module: str) -> Iterator[tuple[str, Function]]:
    """Functions and methods by name, "Class.method" for those of classes; not those inside of others."""
    for node in tree_of(module).body:
        if isinstance(node, Function):
            yield node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from ((f"{node.name}.{item.name}", item) for item in node.body if isinstance(item, Function))


def is_public(name: str) -> bool:
    return not any(part.startswith("_") for part in name.split("."))


def underscored(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def own_names(node: ast.ClassDef) -> set[str]:
    """Underscored names that a class gives to itself or to its instances."""
    names = {item.name for item in node.body if isinstance(item, (*Function.__args__, ast.ClassDef))}
    for item in ast.walk(node):
        if isinstance(item, ast.Attribute) and isinstance(item.ctx, ast.Store) and is_self(item.value):
            names.add(item.attr)
        elif isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            names.add(item.target.id)
    return set(filter(underscored, names))


def is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


@cache
def names_of_classes() -> frozenset[str]:
    return frozenset(name for module in SOURCES for node in classes(module) for name in own_names(node))


def private_reads(module: str) -> Iterator[str]:
    """Underscored names of ours that a module reads where they are not its own."""
    mine = {id(item): names for node in classes(module) for names in (own_names(node),) for item in ast.walk(node)}
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Attribute) and underscored(node.attr) and not is_self(node.value):
            if node.attr in names_of_classes() and node.attr not in mine.get(id(node), ()):
                yield node.attr
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("graphopt"):
            yield from (alias.name for alias in node.names if underscored(alias.name))


def test_no_class_name_stands_twice() -> None:
    count = Counter(node.name for module in SOURCES for node in classes(module))
    assert {name for name, times in count.items() if times > 1} <= SAME_NAMES


def test_every_public_function_says_what_it_does() -> None:
    silent = {
        f"{module}.{name}"
        for module in SOURCES
        for name, node in functions(module)
        if is_public(name) and not ast.get_docstring(node)
    }
    assert silent <= SILENT


def test_files_and_functions_are_short() -> None:
    lines = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in SOURCES.items()}
    assert {module for module, count in lines.items() if count > MOST_LINES} <= LONG_FILES
    lengths = {f"{m}.{name}": (node.end_lineno or 0) - node.lineno + 1 for m in SOURCES for name, node in functions(m)}
    assert {name for name, count in lengths.items() if count > MOST_FUNCTION_LINES} <= LONG_FUNCTIONS


def test_nobody_outside_a_class_reads_its_underscored_names() -> None:
    assert {(module, name) for module in SOURCES for name in private_reads(module)} <= PRIVATE_READS

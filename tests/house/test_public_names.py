"""What `import graphopt` offers is there, and is loaded only when it is asked for."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import graphopt


@pytest.mark.parametrize("name", [*graphopt.__all__, "kernels"])
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(graphopt, name) is not None


def test_type_checkers_see_the_lazy_names_where_they_are() -> None:
    tree = ast.parse(Path(graphopt.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == graphopt._LAZY


def test_dir_has_every_public_name() -> None:
    assert {*graphopt.__all__, "kernels", "__version__"} <= set(dir(graphopt))


def test_importing_graphopt_and_its_help_load_nothing_large() -> None:
    """Not to be imported either by `dir(graphopt)`, which editors ask for."""
    code = "import sys, graphopt, graphopt.integrations; dir(graphopt); "
    code += "from graphopt.cli.cli import main; main(['--help']); "
    code += "sys.exit(', '.join({'torch', 'networkx', 'numpy', 'rich', 'sympy'} & set(sys.modules)) or None)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

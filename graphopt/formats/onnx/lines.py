"""Where an op comes from: the file's name, and in place of a line the number of the node in it."""

from __future__ import annotations

import ast
from typing import Any

from torch import fx

#: In the notes of a node of fx: which node of the file it was recorded for, counted from 1.
NODE = "onnx_node"


def name_lines(module: fx.GraphModule, file: str) -> None:
    """Let the module's forward say, in traces and reports, that it is `file`, and each line that it is of a node.

    The graph stays as it is; where it is changed and compiled again, lines are those of the new code.
    """
    numbers = {node.name: node.meta[NODE] for node in module.graph.nodes if NODE in node.meta}
    tree = ast.parse(module.code.strip())
    (function,) = (each for each in tree.body if isinstance(each, ast.FunctionDef))
    line = 1
    for statement in function.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            line = numbers.get(statement.targets[0].id, line)
        for part in ast.walk(statement):
            if hasattr(part, "lineno"):
                part.lineno = part.end_lineno = line  # type: ignore[attr-defined]
    kind: Any = type(module)
    names: dict[str, Any] = {}
    exec(compile(tree, f"<{file}>", "exec"), kind.forward.__globals__, names)
    kind.forward = names["forward"]

"""Joint graphs of small functions, for tests that look inside."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch._dynamo.backends.common import aot_autograd

from graphopt.graph.joint import JointGraph


class _Stop(Exception):
    pass


def joint_graph(model: nn.Module, *args: Any, **kwargs: Any) -> tuple[JointGraph, list[int]]:
    """AOTAutograd's joint graph of a module's training call, as our passes get it.

    Returns it with the positions of parameters and buffers.
    """
    found: list[tuple[JointGraph, list[int]]] = []

    def partition(joint: fx.GraphModule, _inputs: object, *, num_fwd_outputs: int, **known: Any) -> Any:
        found.append((JointGraph(joint, num_fwd_outputs), list(known.get("static_lifetime_input_indices") or ())))
        raise _Stop

    def nothing(module: fx.GraphModule, _inputs: object) -> Callable[..., Any]:
        return module

    backend = aot_autograd(fw_compiler=nothing, partition_fn=partition, keep_inference_input_mutations=True)
    torch._dynamo.reset()
    try:
        torch.compile(model, backend=backend, dynamic=False)(*args, **kwargs)
    except torch._dynamo.exc.BackendCompilerFailed as error:
        if not isinstance(error.inner_exception, _Stop):
            raise
    return found[0]


def text_of(graph: fx.Graph) -> str:
    """A graph as lines of `name = target(args)`: what golden tests compare."""
    lines = []
    for node in graph.nodes:
        if node.op == "placeholder":
            lines.append(f"{node.name}: input")
        elif node.op == "output":
            lines.append(f"return {node.args[0]}")
        else:
            target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
            arguments = ", ".join([*map(str, node.args), *(f"{k}={v}" for k, v in node.kwargs.items())])
            lines.append(f"{node.name} = {target}({arguments})")
    return "\n".join(lines)


def edits(before: str, after: str) -> list[str]:
    """The lines that went ("- ...") and came ("+ ...") from one text to another, in order."""
    lines = difflib.ndiff(before.splitlines(), after.splitlines())
    return [line for line in lines if line[0] in "-+"]


def leaves(result: object) -> list[torch.Tensor]:
    """The tensors that a graph returned, in order."""
    return [leaf for leaf in torch.utils._pytree.tree_leaves(result) if leaf is not None]

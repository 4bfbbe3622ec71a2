"""What a model's inputs were made by, where that is trained too: it keeps tensors until the backward comes to it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from graphopt.device.storages import storage_bytes, storage_key, stored_parts, tensors_in

#: How autograd names what a node of it keeps.
_SAVED = "_saved_"
#: Nodes that are looked at: a model in front has some hundreds.
_MOST_NODES = 10_000


def bytes_behind(inputs: Iterable[torch.Tensor], device: torch.device) -> int:
    """What is kept for the backward of what `inputs` were made by, without these and without parameters."""
    given = [tensor for tensor in inputs if tensor.grad_fn is not None]
    if not given:
        return 0
    nodes = _nodes_behind(given)
    known = [*given, *(node.variable for node in nodes if hasattr(node, "variable"))]
    found = _storages([tensor for node in nodes for tensor in _saved_by(node)], device)
    own = _storages(known, device)
    return sum(size for key, size in found.items() if key not in own)


def _storages(tensors: Iterable[torch.Tensor], device: torch.device) -> dict[int, int]:
    parts = (part for tensor in tensors for part in stored_parts(tensor))
    return {storage_key(part): storage_bytes(part, device) for part in parts}


def _nodes_behind(given: Iterable[torch.Tensor]) -> list[Any]:
    nodes: dict[Any, None] = dict.fromkeys(tensor.grad_fn for tensor in given)
    waiting = list(nodes)
    while waiting and len(nodes) < _MOST_NODES:
        following = [each for each, _ in waiting.pop().next_functions if each is not None and each not in nodes]
        nodes.update(dict.fromkeys(following))
        waiting.extend(following)
    return list(nodes)


def _saved_by(node: Any) -> list[torch.Tensor]:
    try:
        if hasattr(node, "saved_tensors"):
            return [tensor for tensor in node.saved_tensors if tensor is not None]
        return tensors_in([getattr(node, name) for name in dir(type(node)) if name.startswith(_SAVED)])
    except RuntimeError:  # it was freed, or written in place: autograd will say so
        return []

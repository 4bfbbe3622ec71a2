"""What a node of a joint graph is: view or op, random, writing, safe to run again; where it came from."""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import fx

from graphopt.device.storages import known, planned_bytes, same_device, storage_key
from graphopt.graph.numbers import is_number
from graphopt.graph.roles import EFFECT, RUN_ONCE
from graphopt.graph.step_graph import tensors_of

aten = torch.ops.aten

#: How names of children begin that are not the user's.
WRAPPER = "_graphopt_"
# as text: asked of every frame of every node
_PACKAGE = f"{Path(__file__).parents[1]}{os.sep}"
_DEMO = f"{_PACKAGE}cli{os.sep}"
_FRAME = re.compile(r'\s*File "?(?P<path>[^",]+)"?(?:, line (?P<line>[^,]+))?(?:, (?P<where>.*))?')
_COLLECTIVES = ("_c10d_functional", "_c10d_functional_autograd", "c10d", "c10d_functional", "_dtensor")

# With training=True these do not read the running statistics, they only return the new ones:
# run a second time after the update, every other output is the same.
_STATISTICS_UPDATES = {
    aten._native_batch_norm_legit_functional.default: 5,
    aten._batch_norm_with_update_functional.default: None,
}

# These write the running statistics that they are given, and their schemas do not say so.
_HIDDEN_WRITES = {aten.native_batch_norm.default, aten.cudnn_batch_norm.default, aten.miopen_batch_norm.default}

# cuDNN writes into what its forward kept for it, so that a second run would read something else.
_RUN_ONCE = ("aten._cudnn_rnn_backward.default", "graphopt.cudnn_layers_backward.default")


def is_view(node: fx.Node) -> bool:
    """True for a node that only looks at a storage of its inputs: a view or `getitem`."""
    if node.target is operator.getitem:
        return True
    if is_collective(node):
        return False
    mine = {storage_key(tensor) for tensor in tensors_of(node)}
    theirs = {storage_key(tensor) for source in node.all_input_nodes for tensor in tensors_of(source)}
    return bool(mine) and mine <= theirs and not is_mutating(node)


def is_random(node: fx.Node) -> bool:
    """True for an op that draws from the generator, so that running it again must replay the draw."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    if torch.Tag.nondeterministic_seeded not in node.target.tags:
        return False
    names = [argument.name for argument in node.target._schema.arguments]
    for name in ("dropout_p", "dropout"):
        if name in names:
            position = names.index(name)
            chance = node.args[position] if position < len(node.args) else node.kwargs.get(name, 0.0)
            return bool(chance != 0.0)
    return True


def is_new_statistics(node: fx.Node) -> bool:
    """True for the new running statistics of a batch norm.

    A batch norm that runs again starts from statistics already updated: these differ, and only the
    first run's are written; the backward takes them as arguments but, in training, does not read them.
    """
    if node.target is not operator.getitem or not isinstance(node.args[0], fx.Node):
        return False
    position = node.args[1]
    return node.args[0].target in _STATISTICS_UPDATES and isinstance(position, int) and position >= 3


def is_read_as_statistics(node: fx.Node) -> bool:
    """True for running statistics that nothing reads but batch norms of training, whose results they do not change."""
    return all(
        user.target in _STATISTICS_UPDATES and node in user.args[3:5] and node not in (*user.args[:3], *user.args[5:])
        for user in node.users
    )


def source_line(node: fx.Node) -> str:
    """`"file.py:12 in forward"` for the model's own line that made this node; "" where unknown, or a line of ours."""
    trace = node.meta.get("stack_trace") or ""
    # the innermost frame is the last
    for line in reversed(trace.splitlines()):
        found = _FRAME.match(line)
        if found and not is_own_file(found["path"]):
            return f"{found['path']}:{found['line']} {found['where'] or ''}".strip()
    return ""


def module_path(node: fx.Node) -> str:
    """Dotted path of the innermost module that made this node; "" where unknown."""
    stack = node.meta.get("nn_module_stack") or node.meta.get("fwd_nn_module_stack")
    if not stack:
        return ""
    path = str(list(stack.values())[-1][0])
    # Dynamo names what it was given: L['self'], or L['fn'].__self__ where it was a bound method
    path = re.sub(r"^L\['\w+'\]\.?(__self__\.?)?", "", path)
    return own_name(path.replace("_modules['", "").replace("']", "").removeprefix("self.").removeprefix("."))


def own_name(name: str) -> str:
    """A dotted name as the user's model has it: what wraps that in a step are children named `_graphopt_...`."""
    return ".".join(part for part in name.split(".") if not part.startswith(WRAPPER))


def is_own_file(path: str) -> bool:
    """Whether a file is one of graphopt's own, none of which is a model but the demo's."""
    return path.startswith(_PACKAGE) and not path.startswith(_DEMO)


def without_own_frames(text: str) -> str:
    """A text with a traceback in it, without the frames that are graphopt's own."""
    frame = re.compile(r'^ *File "([^"]+)", line \d+.*\n(?:    .*\n)?', re.MULTILINE)
    return frame.sub(lambda found: "" if is_own_file(found[1]) else found[0], text)


def may_run_again(node: fx.Node, mutated_inputs: set[int], home: Mapping[fx.Node, int]) -> bool:
    """True for an op whose second run gives what the first gave.

    `mutated_inputs` are the values that it reads and that the step writes.
    """
    if not isinstance(node.target, torch._ops.OpOverload) or has_effect(node) or node.meta.get(RUN_ONCE):
        return False
    if str(node.target) in _RUN_ONCE or (node.target in _HIDDEN_WRITES and isinstance(node.args[3], fx.Node)):
        return False
    if not mutated_inputs:
        return True
    training_at = _STATISTICS_UPDATES.get(node.target, -1)
    if training_at == -1:
        return False
    statistics = {home[n] for n in node.args[3:5] if isinstance(n, fx.Node) and n in home}
    training = training_at is None or node.args[training_at] is True
    return training and mutated_inputs <= statistics


def has_effect(node: fx.Node) -> bool:
    """An op that must run once and only once: it writes, communicates, checks or prints."""
    if node.meta.get(EFFECT):
        return True
    if is_number(node):
        return False
    if not isinstance(node.target, torch._ops.OpOverload):
        return not callable(node.target) or not tensors_of(node)
    return node.target._schema.is_mutable or not tensors_of(node) or is_collective(node)


def is_collective(node: fx.Node) -> bool:
    """True for an op that talks to other processes, or waits for them."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target.namespace in _COLLECTIVES


def is_gather(node: fx.Node) -> bool:
    """True for a collective that hands every process all others' tensors."""
    return is_collective(node) and node.target._opname == "all_gather_into_tensor"  # type: ignore[union-attr]


def is_wait(node: fx.Node) -> bool:
    """True for the wait for what a collective gives."""
    return is_collective(node) and node.target._opname == "wait_tensor"  # type: ignore[union-attr]


def is_mutating(node: fx.Node) -> bool:
    """True for an op whose schema says that it writes an argument."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def written_arguments(node: fx.Node) -> list[fx.Node]:
    """The nodes that an op's schema says it writes."""
    if not is_mutating(node):
        return []
    names = [a for a in node.target._schema.arguments if a.alias_info is not None and a.alias_info.is_write]  # type: ignore
    given = dict(zip((a.name for a in node.target._schema.arguments), node.args, strict=False)) | node.kwargs  # type: ignore
    found: list[fx.Node] = []
    for argument in names:
        fx.node.map_arg(given.get(argument.name), found.append)
    return found


def writes_input(node: fx.Node) -> bool:
    """True for the write of a new value into one of the step's inputs."""
    return node.target is aten.copy_.default or (
        is_mutating(node) and bool(node.args) and isinstance(node.args[0], fx.Node) and node.args[0].op == "placeholder"
    )


def copied_bytes(node: fx.Node, device: torch.device, number: Callable[[Any], int] = known) -> int:
    """What `copied_elements` take; `number` says what symbols stand for."""
    view = copied_view(node)
    if view is None or not same_device(view, device):
        return 0
    return planned_bytes(number(copied_elements(view)) * view.itemsize, device)


def copied_view(node: fx.Node) -> torch.Tensor | None:
    """The view that `copy` clones, None for another op."""
    return node.args[0].meta["val"] if node.target is aten.copy.default else None  # type: ignore[union-attr]


def copied_elements(view: torch.Tensor) -> Any:
    """`copy` clones all of its view's storage up to the view's last element."""
    last = view.storage_offset() + sum(s * (n - 1) for s, n in zip(view.stride(), view.shape, strict=True))
    return last + 1

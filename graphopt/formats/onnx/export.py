"""A model's forward as an ONNX file, each node with what the plan does with it: for Netron, and for programs.

torch's exporter writes the graph. What it says of a node, the module and the line that made it, leads to the plan's
ops: of one module and line they are met in order.
"""

from __future__ import annotations

import ast
import logging
import re
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import onnx
import torch
from onnx import ModelProto, NodeProto, checker
from torch import nn

from graphopt.base.errors import CaptureError, OnnxError
from graphopt.graph.transfers import fetch_ops, fetched_values
from graphopt.plan.checkpoints import kept_values
from graphopt.plan.planned_graph import PlannedGraph

#: Keys of a node's metadata: "true" or "false", a count of further runs, the same of what is moved out of memory and
#: fetched back, bytes of its values, seconds of one run.
KEPT, RECOMPUTED, OFFLOADED, BYTES, SECONDS = (
    f"graphopt.{name}" for name in ("kept", "recomputed", "offloaded", "bytes", "seconds")
)
_SCOPES, _TRACE = "pkg.torch.onnx.name_scopes", "pkg.torch.onnx.stack_trace"
#: In place of a module: any.
_ANY = "*"
_LINE = re.compile(r'File "(.+?)", line (\d+), in (\w+)')
#: protobuf holds no larger message; the exporter puts weights beside the file then.
_MOST_INLINE_BYTES = 2**30


@dataclass(frozen=True)
class OpNote:
    """What a plan does with one op of the forward; `where` is its module and its line."""

    where: tuple[str, str]
    kept: bool
    runs_again: int
    offloaded: bool
    bytes: int
    seconds: float


def export_model(
    model: nn.Module,
    example_inputs: Any,
    path: str | Path,
    planned: Sequence[PlannedGraph] = (),
    about: Mapping[str, object] = MappingProxyType({}),
) -> tuple[int, int]:
    """Write the forward of `model` as it is in evaluation: how many nodes it has, and how many a note of the plan.

    `about` goes into the metadata of the whole file. Raises CaptureError where torch cannot export it, OnnxError where
    the file is not valid or cannot be written.
    """
    args = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    args, kwargs = ((), dict(example_inputs)) if isinstance(example_inputs, Mapping) else (args, {})
    training = model.training
    try:
        with _quiet():
            program = torch.onnx.export(model.eval(), args, kwargs=kwargs, dynamo=True, optimize=False, verbose=False)
        assert program is not None
    except Exception as error:  # of torch.export, of its decompositions, and of onnxscript
        raise CaptureError(f"torch cannot export {type(model).__name__} to ONNX: {_first_line(error)}") from error
    finally:
        model.train(training)
    proto = program.model_proto
    count = note_nodes(proto, notes_of(planned))
    for key, value in about.items():
        proto.metadata_props.add(key=f"graphopt.{key}", value=str(value))
    large = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters()) > _MOST_INLINE_BYTES
    try:
        onnx.save_model(proto, path, save_as_external_data=large, location=f"{Path(path).name}.data")
        checker.check_model(str(path), full_check=not large)
    except OSError as error:
        raise OnnxError(f"cannot write {path}: {error.strerror or error}") from error
    except (checker.ValidationError, ValueError) as error:
        raise OnnxError(f"what torch exported breaks ONNX's rules: {_first_line(error)}") from error
    return len(proto.graph.node), count


def notes_of(planned: Iterable[PlannedGraph]) -> list[OpNote]:
    """The ops of the forwards, in order."""
    found = []
    for each in planned:
        step, problem = each.captured.step, each.captured.problem
        kept = set(kept_values(step, problem, each.schedule))
        fetched = {value for values in fetched_values(step, each.schedule).values() for value in values}
        handed_on = {step.ops[op].transfer.of: step.ops[op].outputs for op in fetch_ops(step)}  # type: ignore[union-attr]
        for position, (op, priced) in enumerate(zip(step.ops, problem.ops, strict=True)):
            if priced.backward or op.node is None:
                continue
            outputs = handed_on.get(position, op.outputs)
            found.append(
                OpNote(
                    where=(op.module_path, op.source),
                    kept=not kept.isdisjoint(outputs),
                    runs_again=each.schedule.count(position) - 1,
                    offloaded=not fetched.isdisjoint(outputs),
                    bytes=sum(problem.values[number].bytes for number in outputs),
                    seconds=float(priced.seconds),
                )
            )
    return found


def note_nodes(proto: ModelProto, notes: Sequence[OpNote]) -> int:
    """Write the notes into the nodes that they are of; how many nodes have one. Sums over nodes are sums over ops."""
    by_place: defaultdict[tuple[str, str], list[NodeProto]] = defaultdict(list)
    for node in proto.graph.node:
        for place in _places(node) if node.op_type != "Constant" else ():
            by_place[place].append(node)
    groups: defaultdict[tuple[str, str], list[OpNote]] = defaultdict(list)
    for note in notes:
        path, line = note.where
        keys = ((path, line), (path, ""), (_ANY, line))
        groups[next((key for key in keys if any(key) and key in by_place), ("", ""))].append(note)
    gathered: dict[int, tuple[NodeProto, list[OpNote]]] = {}
    for key, group in groups.items():
        nodes = by_place.get(key, [])
        for number, note in enumerate(group if nodes else ()):
            # one op that the exporter wrote as several is at the last of them, which makes its value
            node = nodes[max((number + 1) * len(nodes) // len(group) - 1, 0)]
            gathered.setdefault(id(node), (node, []))[1].append(note)
    for node, mine in gathered.values():
        entries = {
            KEPT: str(any(note.kept for note in mine)).lower(),
            RECOMPUTED: str(sum(note.runs_again for note in mine)),
            OFFLOADED: str(any(note.offloaded for note in mine)).lower(),
            BYTES: str(sum(note.bytes for note in mine)),
            SECONDS: f"{sum(note.seconds for note in mine):.3e}",
        }
        for name, text in entries.items():
            node.metadata_props.add(key=name, value=text)
    return len(gathered)


def _places(node: NodeProto) -> Iterator[tuple[str, str]]:
    """Module and line of a node, each of the two alone; each line of its trace once."""
    told = {entry.key: entry.value for entry in node.metadata_props}
    try:
        scopes = ast.literal_eval(told.get(_SCOPES, "[]"))
    except (ValueError, SyntaxError):
        scopes = []
    path = next((scope for scope in reversed(scopes[:-1]) if scope), "")
    if path:
        yield path, ""
    lines = {f"{file}:{line} in {name}" for file, line, name in _LINE.findall(told.get(_TRACE, ""))}
    for line in sorted(lines):
        yield path, line
        yield _ANY, line


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporter says of packages that are not there."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

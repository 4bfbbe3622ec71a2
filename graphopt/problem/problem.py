"""The problem: all that a planner may see. Plain data, JSON in and out, no torch.

What a file may hold is bounded, so that every sum that a planner makes is exact and every quotient is a number: see
`MOST_BYTES`, `LEAST_SECONDS`, `MOST_SECONDS`, `MOST_ITEMS` and `MOST_FILE_BYTES`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graphopt.base.errors import ProblemError

SCHEMA = "graphopt.problem/1"

#: Bytes of all values and of the largest workspace together. No schedule has more alive at once; the bound is so far
#: below 2**63 and 2**53 that some times as much is still exact as a whole number and as a float.
MOST_BYTES = 2**50
#: Seconds of an op that takes any, and of any op: a step's share of a second per byte stays an ordinary float.
LEAST_SECONDS, MOST_SECONDS = 1e-30, 1e30
#: Values, and what all ops and the problem together name of them.
MOST_ITEMS = 2**24
#: A problem of a hundred thousand ops is some twenty megabytes.
MOST_FILE_BYTES = 2**28
#: Digits of a whole number, and letters of a text, that a message shows.
_DIGITS, _SHOWN = 30, 60


@dataclass(frozen=True, slots=True)
class Value:
    """One storage; every view of it is the same value."""

    bytes: int


@dataclass(frozen=True, slots=True)
class Op:
    """A step that computes. `inputs` and `outputs` are value ids, each at most once.

    Ops that are `pinned`, and those that are not recomputable, first run in the order in which they
    stand: they draw random numbers, or change something.
    """

    name: str
    seconds: float
    workspace_bytes: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    backward: bool = False
    recomputable: bool = True
    pinned: bool = False


@dataclass(frozen=True)
class Problem:
    """Ops in a valid order, the values they pass, and the values that must be there at the end.

    A value that no op produces is resident: always there, and costs nothing here. A value is
    produced by at most one op. `outputs` may name resident values.
    """

    values: tuple[Value, ...]
    ops: tuple[Op, ...]
    outputs: tuple[int, ...]

    @cached_property
    def producer(self) -> tuple[int, ...]:
        """For each value the id of the op that produces it, or -1 where it is resident."""
        producer = [-1] * len(self.values)
        for op_id, op in enumerate(self.ops):
            for value in op.outputs:
                producer[value] = op_id
        return tuple(producer)

    @cached_property
    def readers(self) -> tuple[tuple[int, ...], ...]:
        """For each value the ids of the ops that read it, in order."""
        readers: list[list[int]] = [[] for _ in self.values]
        for op_id, op in enumerate(self.ops):
            for value in op.inputs:
                readers[value].append(op_id)
        return tuple(map(tuple, readers))

    @cached_property
    def is_recomputable(self) -> npt.NDArray[np.bool_]:
        """For each op whether it may run again."""
        return np.array([op.recomputable for op in self.ops], dtype=np.bool_)

    @cached_property
    def made_and_read(self) -> npt.NDArray[np.int64]:
        """Two rows: the op that makes a value, and one that reads it; a column for each such pair."""
        producer = self.producer
        pairs = {(producer[v], op_id) for op_id, op in enumerate(self.ops) for v in op.inputs if producer[v] >= 0}
        found: npt.NDArray[np.int64] = np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2).T
        return found

    @cached_property
    def first_backward(self) -> int:
        """Id of the first backward op; the number of ops where there is none."""
        return next((i for i, op in enumerate(self.ops) if op.backward), len(self.ops))

    @cached_property
    def seconds(self) -> float:
        """Time of every op once: what a step costs with nothing recomputed."""
        return math.fsum(op.seconds for op in self.ops)


def check_problem(problem: Problem) -> Problem:
    """Return `problem`; raise ProblemError, naming the op or the field, where it is not one."""
    count = len(problem.values)
    _check_sums(problem)
    produced: set[int] = set()
    made_somewhere = {v for op in problem.ops for v in op.outputs}
    for position, op in enumerate(problem.ops):
        where = f"op {position} ({op.name!r})"
        for kind, ids in (("input", op.inputs), ("output", op.outputs)):
            if len(set(ids)) != len(ids):
                raise ProblemError(f"{where} names an {kind} twice")
            for value in ids:
                if not 0 <= value < count:
                    raise ProblemError(f"{where}: there is no value {value}; {count} values are given")
        for value in op.inputs:
            if value in made_somewhere and value not in produced:
                raise ProblemError(
                    f"{where} reads value {value} before it is produced: ops must stand in a valid order"
                )
        for value in op.outputs:
            if value in produced:
                raise ProblemError(f"{where}: value {value} is produced by two ops")
            produced.add(value)
    for value in problem.outputs:
        if not 0 <= value < count:
            raise ProblemError(f"outputs: there is no value {value}; {count} values are given")
    if len(set(problem.outputs)) != len(problem.outputs):
        raise ProblemError("outputs names a value twice")
    return problem


def _check_sums(problem: Problem) -> None:
    ops = problem.ops
    all_bytes = sum(value.bytes for value in problem.values)
    workspace_bytes = max((op.workspace_bytes for op in ops), default=0)
    if all_bytes + workspace_bytes > MOST_BYTES:
        raise ProblemError(
            f"values and ops: the bytes of all values ({all_bytes:,}) and the largest workspace ({workspace_bytes:,}) "
            f"are together at most 2**50"
        )
    named = sum(len(op.inputs) + len(op.outputs) for op in ops) + len(problem.outputs)
    if max(len(problem.values), len(ops), named) > MOST_ITEMS:
        raise ProblemError(f"values and ops: at most {MOST_ITEMS:,} values, ops, and names of values in all of them")


def problem_to_json(problem: Problem) -> dict[str, Any]:
    """The problem as `graphopt.problem/1` data."""
    return {
        "schema": SCHEMA,
        "values": [{"bytes": value.bytes} for value in problem.values],
        "ops": [
            {
                "name": op.name,
                "seconds": op.seconds,
                "workspace": op.workspace_bytes,
                "inputs": list(op.inputs),
                "outputs": list(op.outputs),
                "backward": op.backward,
                "recomputable": op.recomputable,
                **({"pinned": True} if op.pinned else {}),
            }
            for op in problem.ops
        ],
        "outputs": list(problem.outputs),
    }


def problem_from_json(data: object) -> Problem:
    """Read `graphopt.problem/1` data; raises ProblemError naming the field that is wrong."""
    root = _mapping(data, "problem")
    if root.get("schema") != SCHEMA:
        raise ProblemError(f"problem.schema: expected {SCHEMA!r}, got {_shown(root.get('schema'))}")
    values = tuple(
        Value(_integer(_mapping(item, f"values[{i}]").get("bytes"), f"values[{i}].bytes"))
        for i, item in enumerate(_sequence(root.get("values"), "values"))
    )
    ops = tuple(_op(item, f"ops[{i}]") for i, item in enumerate(_sequence(root.get("ops"), "ops")))
    if not ops:
        raise ProblemError("ops: a problem needs at least one op")
    return check_problem(Problem(values, ops, _ids(root.get("outputs"), "outputs")))


def load_problem(path: str | Path) -> Problem:
    """Read a problem file. Raises ProblemError with the file's name and the field that is wrong."""
    try:
        with Path(path).open("rb") as file:
            raw = file.read(MOST_FILE_BYTES + 1)
        if len(raw) > MOST_FILE_BYTES:
            raise ProblemError(f"larger than {MOST_FILE_BYTES:,} bytes")
        data = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_int=_whole)
    except (OSError, ValueError, RecursionError) as error:
        raise ProblemError(f"{path}: not a readable JSON file: {error}") from error
    try:
        return problem_from_json(data)
    except ProblemError as error:
        raise ProblemError(f"{path}: {error}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ProblemError(f"the field {_shown(twice)} stands twice in one object")
    return fields


def _whole(digits: str) -> int | float:
    """A whole number; one of so many digits that no field takes it as a float, which the field then names."""
    return int(digits) if len(digits) <= _DIGITS else float(digits)


def save_problem(problem: Problem, path: str | Path) -> None:
    """Write `problem` as a `graphopt.problem/1` file."""
    Path(path).write_text(json.dumps(problem_to_json(problem)), encoding="utf-8")


def _op(data: object, where: str) -> Op:
    item = _mapping(data, where)
    name, seconds = item.get("name", ""), item.get("seconds")
    if not isinstance(name, str):
        raise ProblemError(f"{where}.name: expected text, got {_shown(name)}")
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not _is_time(seconds):
        raise ProblemError(
            f"{where}.seconds: expected 0, or a number from {LEAST_SECONDS} to {MOST_SECONDS}, got {_shown(seconds)}"
        )
    return Op(
        name=name,
        seconds=float(seconds),
        workspace_bytes=_integer(item.get("workspace", 0), f"{where}.workspace"),
        inputs=_ids(item.get("inputs"), f"{where}.inputs"),
        outputs=_ids(item.get("outputs"), f"{where}.outputs"),
        backward=_boolean(item.get("backward", False), f"{where}.backward"),
        recomputable=_boolean(item.get("recomputable", True), f"{where}.recomputable"),
        pinned=_boolean(item.get("pinned", False), f"{where}.pinned"),
    )


def _mapping(data: object, where: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise ProblemError(f"{where}: expected an object, got {type(data).__name__}")
    return data


def _sequence(data: object, where: str) -> list[Any]:
    if not isinstance(data, list):
        raise ProblemError(f"{where}: expected a list, got {type(data).__name__}")
    return data


def _is_time(seconds: float) -> bool:
    return seconds == 0 or LEAST_SECONDS <= seconds <= MOST_SECONDS


def _integer(data: object, where: str) -> int:
    if isinstance(data, bool) or not isinstance(data, int) or not 0 <= data <= MOST_BYTES:
        raise ProblemError(f"{where}: expected a whole number from 0 to 2**50, got {_shown(data)}")
    return data


def _shown(data: object) -> str:
    """What was found, in one short line."""
    if isinstance(data, (dict, list)):
        return "an object" if isinstance(data, dict) else f"a list of {len(data)}"
    text = f"{float(data)}" if isinstance(data, float) else ascii(data) if not _is_long(data) else "a longer number"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _is_long(data: object) -> bool:
    return isinstance(data, int) and abs(data) >= 10**_DIGITS


def _boolean(data: object, where: str) -> bool:
    if not isinstance(data, bool):
        raise ProblemError(f"{where}: expected true or false, got {_shown(data)}")
    return data


def _ids(data: object, where: str) -> tuple[int, ...]:
    items: Iterable[object] = _sequence(data, where)
    return tuple(_integer(item, f"{where}[{i}]") for i, item in enumerate(items))

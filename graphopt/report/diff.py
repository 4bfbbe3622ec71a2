"""What changed from one plan to another, of the same model or not. Files are data: checked, never run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from graphopt.base.errors import PlanMismatchError
from graphopt.base.records import decode, encode, read_object
from graphopt.base.units import format_bytes
from graphopt.problem.plan import SCHEMA as PLAN_SCHEMA
from graphopt.problem.plan import ModuleShare, Plan
from graphopt.report.data import Measured
from graphopt.report.figures import signed_percent
from graphopt.report.json import SCHEMA as REPORT_SCHEMA
from graphopt.report.module_tree import OUTSIDE
from graphopt.report.text import plain, render, table

#: Modules that are shown; the JSON has all of them.
_MOST_ROWS = 24


@dataclass(frozen=True)
class Planned:
    """A plan, and what was measured of it; None where that is not known."""

    plan: Plan
    measured: Measured | None


@dataclass(frozen=True)
class Change:
    """A figure of both plans: bytes, a fraction, a count or a word; None where one of them does not have it."""

    name: str
    unit: str
    before: float | str | None
    after: float | str | None


@dataclass(frozen=True)
class ModuleChange:
    """A module of which another part is kept, runs again or is moved."""

    path: str
    before: ModuleShare
    after: ModuleShare


@dataclass(frozen=True)
class PlanDiff:
    """What changed. `same_graphs` says whether both are plans of the same graphs, `same` whether nothing differs."""

    same: bool
    same_graphs: bool
    changes: tuple[Change, ...]
    modules: tuple[ModuleChange, ...]


def load_planned(path: str | Path) -> Planned:
    """Read a plan file, or a report as `plan --json`, `verify --json` or `report.save()` writes it.

    Raises UsageError where it cannot be opened, and PlanMismatchError where it is neither, or was changed.
    """
    root = read_object(path)
    inner = root.get("report")
    if "equal" in root and isinstance(inner, dict):
        root = inner
    schema = root.get("schema")
    if schema == REPORT_SCHEMA:
        try:
            return _of_report(root)
        except PlanMismatchError as error:
            raise PlanMismatchError(f"{path}: {error}") from None
    if schema == PLAN_SCHEMA:
        return Planned(Plan.load(path), None)
    raise PlanMismatchError(f"{path}: schema: expected {PLAN_SCHEMA!r} or {REPORT_SCHEMA!r}, got {str(schema)[:80]!r}")


def compare(before: Planned, after: Planned) -> PlanDiff:
    """Compare two plans, figure by figure and module by module."""
    changes = tuple(
        Change(name, unit, take(before), take(after))
        for name, unit, take in _FIGURES
        if take(before) is not None or take(after) is not None
    )
    hashes, schedules = (
        [[getattr(graph, field) for graph in each.plan.graphs] for each in (before, after)]
        for field in ("graph_hash", "schedule")
    )
    same = all(each.before == each.after for each in changes)
    same_graphs = hashes[0] == hashes[1]
    same_schedules = schedules[0] == schedules[1]
    return PlanDiff(same and same_graphs and same_schedules, same_graphs, changes, _modules(before.plan, after.plan))


def diff_to_json(found: PlanDiff) -> dict[str, Any]:
    """All of it as JSON data."""
    return {
        "schema": "graphopt.diff/1",
        "same": found.same,
        "same_graphs": found.same_graphs,
        "figures": {each.name: {"before": each.before, "after": each.after} for each in found.changes},
        "modules": encode(found.modules),
    }


def diff_text(found: PlanDiff, width: int = 110, color: bool = False) -> str:
    """What differs as two tables, for a terminal."""
    if found.same:
        return "the same plan"
    parts: list[RenderableType] = []
    if not found.same_graphs:
        parts += [Text("The plans are of different graphs: another model, other shapes, or another torch."), ""]
    made = table("", "before", "after", "change", right=("before", "after", "change"))
    for each in found.changes:
        if each.before != each.after or each.name in ("budget", "predicted peak"):
            made.add_row(each.name, _shown(each.before, each.unit), _shown(each.after, each.unit), _change(each))
    parts.append(made)
    if found.modules:
        parts += ["", _module_table(found.modules[:_MOST_ROWS])]
    if len(found.modules) > _MOST_ROWS:
        parts.append(Text(f"… {len(found.modules) - _MOST_ROWS} more modules; all are in --json", style="dim"))
    if not found.modules:
        parts.append(Text("Every module keeps, recomputes and moves what it did.", style="dim"))
    return render(parts, width, color)


def _of_report(root: dict[str, object]) -> Planned:
    plan, measured = root.get("plan"), root.get("measured")
    graphs = plan.get("graphs") if isinstance(plan, dict) else None
    if not isinstance(plan, dict) or not isinstance(graphs, list) or not all(isinstance(g, dict) for g in graphs):
        raise PlanMismatchError("plan.graphs: expected a list of objects")
    whole = {**plan, "graphs": [{**graph, "curve": []} for graph in graphs]}
    return Planned(decode(Plan, whole, "plan"), None if measured is None else decode(Measured, measured, "measured"))


def _kept_bytes(planned: Planned) -> int:
    return sum(checkpoint.bytes for checkpoint in planned.plan.checkpoints)


def _seconds_more(planned: Planned) -> float | None:
    ratio = planned.measured.time_ratio if planned.measured is not None else None
    return None if ratio is None else ratio - 1


_FIGURES: tuple[tuple[str, str, Callable[[Planned], float | str | None]], ...] = (
    ("model", "", lambda p: p.plan.model),
    ("device", "", lambda p: p.plan.device),
    ("torch", "", lambda p: p.plan.torch_version),
    ("planner", "", lambda p: p.plan.planner),
    ("compiler", "", lambda p: p.plan.compiler),
    ("numerics", "", lambda p: p.plan.numerics),
    ("budget", "bytes", lambda p: p.plan.budget_bytes),
    ("predicted peak", "bytes", lambda p: p.plan.peak_bytes),
    ("measured peak", "bytes", lambda p: p.measured.peak_bytes if p.measured is not None else None),
    ("eager peak", "bytes", lambda p: p.plan.eager_peak_bytes),
    ("smallest budget", "bytes", lambda p: p.plan.minimum_bytes),
    ("predicted time", "fraction", lambda p: p.plan.overhead),
    ("measured time", "fraction", _seconds_more),
    ("checkpoints", "count", lambda p: len(p.plan.checkpoints)),
    ("bytes of checkpoints", "bytes", _kept_bytes),
    ("ops run again", "count", lambda p: len(p.plan.recomputed)),
    ("values fetched", "count", lambda p: len(p.plan.fetched)),
    ("bytes moved", "bytes", lambda p: p.plan.moved_bytes),
)


def _modules(before: Plan, after: Plan) -> tuple[ModuleChange, ...]:
    shares = [_by_path(plan) for plan in (before, after)]
    found = []
    for path in dict.fromkeys((*shares[0], *shares[1])):
        one, other = (each.get(path, ModuleShare(path, 0.0, 0, 0, 0, 0, 0.0, 0, 0)) for each in shares)
        if _decided(one) != _decided(other):
            found.append(ModuleChange(path, one, other))
    return tuple(found)


def _by_path(plan: Plan) -> dict[str, ModuleShare]:
    """The shares of each module, those in several graphs added up."""
    found: dict[str, ModuleShare] = {}
    for share in (share for graph in plan.graphs for share in graph.modules):
        if share.path in found:
            known = vars(found[share.path])
            share = ModuleShare(share.path, **{k: v + known[k] for k, v in vars(share).items() if k != "path"})
        found[share.path] = share
    return found


def _decided(share: ModuleShare) -> tuple[int, ...]:
    """What a plan decides of a module; seconds also differ where nothing was decided."""
    return share.kept, share.kept_bytes, share.recomputed, share.fetched, share.fetched_bytes


def _module_table(changes: tuple[ModuleChange, ...]) -> RenderableType:
    numbers = ("kept", "ops run again", "fetched")
    made = table("module", *numbers, right=numbers)
    for each in changes:
        one, other = each.before, each.after
        made.add_row(
            Text(plain(each.path or OUTSIDE)),
            _pair(format_bytes(one.kept_bytes), format_bytes(other.kept_bytes)),
            _pair(str(one.recomputed), str(other.recomputed)),
            _pair(format_bytes(one.fetched_bytes), format_bytes(other.fetched_bytes)),
        )
    return made


def _pair(before: str, after: str) -> str:
    return f"{before} → {after}" if before != after else "="


def _shown(value: float | str | None, unit: str) -> Text:
    if value is None:
        return Text("–")
    if isinstance(value, str):
        return Text(plain(value))
    return Text(
        format_bytes(value) if unit == "bytes" else signed_percent(value) if unit == "fraction" else f"{value:,}"
    )


def _change(change: Change) -> str:
    before, after = change.before, change.after
    if not isinstance(before, (int, float)) or not isinstance(after, (int, float)):
        return ""
    by = after - before
    if change.unit == "fraction":
        return f"{100 * by:+.1f} points"
    if change.unit == "count":
        return f"{by:+,}"
    return f"{'-' if by < 0 else '+'}{format_bytes(abs(by))}" if by else ""

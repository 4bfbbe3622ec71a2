"""What each command does; every one returns a CommandResult, which the command line prints."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from graphopt.base.errors import BudgetError, GraphoptError, InfeasibleError, UsageError
from graphopt.base.progress import phase, seconds_by_phase
from graphopt.base.records import write_text
from graphopt.base.units import format_bytes, parse_bytes
from graphopt.formats.graph_file import check_graph_path, write_graph
from graphopt.problem.plan import PROVEN
from graphopt.problem.problem import Problem, load_problem, problem_to_json
from graphopt.problem.schedule import Schedule, check_schedule, simulate

if TYPE_CHECKING:
    from graphopt.api.optimized import Optimized
    from graphopt.plan.planned_graph import PlannedGraph
    from graphopt.planners import Planner, Study
    from graphopt.report.data import Report


@dataclass(frozen=True)
class CommandResult:
    """The result of a command: `text(color)` for people, `data` for programs."""

    text: Callable[[bool], str]
    data: dict[str, Any]
    exit_code: int = 0


def plan(options: argparse.Namespace) -> CommandResult:
    """Plan a model and report it."""
    if options.graph:
        check_graph_path(options.graph)
    target, keywords = _prepare(options)
    with phase("loading PyTorch"):
        from graphopt.api.optimize import plan_model
        from graphopt.cli.over import on_meta, parse_dynamic
        from graphopt.report.json import report_to_json
        from graphopt.report.text import render_text

    dynamic = parse_dynamic(options.dynamic) if options.dynamic else target.dynamic
    with phase("capturing"):
        optimized = plan_model(target.model, target.example_inputs, target.loss_fn, **keywords, dynamic=dynamic)
    with phase("reporting"):
        report = optimized.report
        _write(options, report)
    behind, data = "", dict[str, Any]()
    if dynamic is not None:
        from graphopt.api.sized_estimate import planned_formula

        formula = planned_formula(optimized.in_force, target.example_inputs, dynamic)
        behind, data = f"\n\n{formula}", {"formula": formula.as_text()}
    _write_graphs(options, optimized)
    data["phases"] = options.phases.seconds
    behind += f"\n\n{on_meta(target.model)}" if options.meta else ""
    behind += f"\n\n{seconds_by_phase(options.phases.seconds)}"
    return CommandResult(lambda color: render_text(report, color=color) + behind, report_to_json(report) | data)


def verify(options: argparse.Namespace) -> CommandResult:
    """Plan a model, run it against eager, and report both."""
    target, keywords = _prepare(options)
    from graphopt.api.verify import verify_model
    from graphopt.report.json import report_to_json
    from graphopt.report.text import render_text

    result = verify_model(target.model, target.example_inputs, target.loss_fn, **keywords)
    _write(options, result.report)

    def text(color: bool) -> str:
        words = "bit for bit" if result.bitwise else "within rounding"
        verdict = f"VERIFIED: the optimized step equals eager {words}"
        return "\n".join(
            [render_text(result.report, color=color), "", verdict, *(f"  {line}" for line in result.lines)]
        )

    data = {"equal": result.equal, "bitwise": result.bitwise, "lines": list(result.lines)}
    return CommandResult(text, {**data, "report": report_to_json(result.report)})


def sweep(options: argparse.Namespace) -> CommandResult:
    """The whole memory/time curve of a model."""
    from graphopt.cli.build_function import load_target
    from graphopt.report.sweep import sweep_html

    if options.over:
        from graphopt.cli.over import sweep_over

        return CommandResult(*sweep_over(options, _costs(options)))
    if options.mem_budget is not None:
        raise UsageError("sweep takes --mem-budget with --over; without, it is over all budgets")
    target = load_target(options.target, "meta" if options.meta else options.device, options.dim)
    from graphopt.api.estimate import estimate

    found = estimate(target.model, target.example_inputs, target.loss_fn, **_costs(options))
    if options.html:
        write_text(options.html, sweep_html(found.model, found.points, found.eager_peak_bytes))
    data = {
        "schema": "graphopt.sweep/1",
        "eager_peak_bytes": found.eager_peak_bytes,
        "minimum_bytes": found.minimum_bytes,
        "points": [{"peak_bytes": p, "overhead": o, "planner": n} for p, o, n in found.points],
    }
    return CommandResult(found.text, data)


def fit(options: argparse.Namespace) -> CommandResult:
    """The ways to cut a batch that fit, and the largest batch that needs no cutting."""
    parse_bytes(options.mem_budget, device_total_bytes=2**40)
    from graphopt.api.fit import fit_model
    from graphopt.cli.build_function import load_target
    from graphopt.cli.over import on_meta
    from graphopt.report.fit import fit_text

    target = load_target(options.target, "meta" if options.meta else options.device, options.dim, sizes_change=True)
    found = fit_model(
        target.model,
        target.example_inputs,
        target.loss_fn,
        mem_budget=options.mem_budget,
        optimizer=options.optimizer or target.optimizer or "adamw",
        planner=options.planner,
        numerics=options.numerics,
        offload=options.offload,
        tell=options.tell,
        **_costs(options),
    )
    data = {"schema": "graphopt.fit/1", **asdict(found)}
    behind = f"\n\n{on_meta(target.model)}" if options.meta else ""
    exit_code = 0 if found.chosen else BudgetError.exit_code
    return CommandResult(lambda color: fit_text(found, color=color) + behind, data, exit_code)


def export(options: argparse.Namespace) -> CommandResult:
    """Write a model's forward as an ONNX file, with the plan on its nodes where there is a budget."""
    from graphopt.cli.onnx_target import check_installed

    if options.mem_budget is not None:
        parse_bytes(options.mem_budget, device_total_bytes=2**40)
    for package in ("onnx", "onnxscript"):
        check_installed(package, f"torch writes no ONNX file without the package {package}")
    from graphopt.api.optimize import plan_model
    from graphopt.cli.build_function import load_target
    from graphopt.formats.onnx.export import export_model

    target = load_target(options.target, options.device, options.dim)
    data: dict[str, Any] = {"schema": "graphopt.export/1", "path": options.onnx, "peak_bytes": None}
    planned: tuple[PlannedGraph, ...] = ()
    about: dict[str, Any] = {}
    if options.mem_budget is not None:
        keywords = {"planner": options.planner, "plan_seconds": options.plan_seconds, "offload": options.offload}
        keywords |= _costs(options)
        if target.optimizer is not None:
            keywords["optimizer"] = target.optimizer
        found = plan_model(
            target.model, target.example_inputs, target.loss_fn, mem_budget=options.mem_budget, **keywords
        )
        planned, plan = found.planned_graphs, found.plan
        about = {name: getattr(plan, name) for name in ("peak_bytes", "eager_peak_bytes", "minimum_bytes", "overhead")}
        data |= about
    nodes, noted = export_model(target.model, target.inputs_of_forward, options.onnx, planned, about)
    data |= {"nodes": nodes, "noted_nodes": noted}
    text = f"{options.onnx}: {nodes} nodes, {noted} with a note of the plan"
    if planned and not noted:
        text += " (none of them is found among the plan's operators, as in a model that was an ONNX file)"
    return CommandResult(lambda _: text, data)


def solve(options: argparse.Namespace) -> CommandResult:
    """Run a planner on a bare problem; the simulator judges."""
    from graphopt.planners import PLANNERS, Study

    if options.planner not in PLANNERS:
        raise UsageError(f"there is no planner {options.planner!r}; there are: {', '.join(PLANNERS)}")
    if options.graph:
        check_graph_path(options.graph)
    problem, budget = load_problem(options.problem), parse_bytes(options.mem_budget)
    run, study = PLANNERS[options.planner], Study(problem)
    data: dict[str, Any] = {"feasible": False, "planner": options.planner}
    data |= dict.fromkeys(("peak_bytes", "seconds", "overhead", "lower_bound_seconds"))
    data |= {"proven_optimal": False, "minimum_bytes": None, "schedule": None}
    try:
        schedule = run(study, budget)
    except InfeasibleError as error:
        if not options.json:
            raise
        print(f"graphopt: {error}", file=sys.stderr)
        return CommandResult(lambda _: "", data | {"minimum_bytes": error.minimum_bytes}, error.exit_code)
    if options.plan_seconds:
        from graphopt.planners.moves.anneal import improve

        schedule = improve(study, schedule, budget, options.plan_seconds)
    data |= {"feasible": True, "minimum_bytes": _minimum_bytes(run, study)}
    data |= _judged(study, check_schedule(problem, schedule), budget, options.planner)
    if options.graph:
        from graphopt.formats.problem_graph import problem_graph

        write_graph(problem_graph(problem, schedule), options.graph)
    return CommandResult(lambda _: _solved(problem, data), data)


def _judged(study: Study, schedule: Schedule, budget: int, planner: str) -> dict[str, Any]:
    """What the simulator and the lower bound say of a schedule."""
    from graphopt.planners.bounds.lower_bound import lower_bound_seconds

    problem = study.problem
    result = simulate(problem, schedule)
    if result.peak_bytes > budget:
        raise GraphoptError(f"planner {planner!r} went over its budget: {result.peak_bytes:,} of {budget:,}")
    bound_seconds = lower_bound_seconds(study, budget)
    return {
        "peak_bytes": result.peak_bytes,
        "seconds": result.seconds,
        "overhead": result.seconds / problem.seconds - 1 if problem.seconds else 0.0,
        "lower_bound_seconds": bound_seconds,
        "proven_optimal": result.seconds <= bound_seconds * (1 + PROVEN),
        "schedule": list(schedule),
    }


def doctor(_: argparse.Namespace) -> CommandResult:
    """What graphopt finds on this machine, and what is wrong with it: the exit code is then 1."""
    from graphopt.cli.doctor.doctor import as_data, as_text, examine

    found = examine()
    data = as_data(found)
    return CommandResult(lambda _: as_text(found), data, 0 if data["ok"] else 1)


def diff(options: argparse.Namespace) -> CommandResult:
    """What changed from one plan or report to another."""
    from graphopt.report.diff import compare, diff_text, diff_to_json, load_planned

    found = compare(load_planned(options.before), load_planned(options.after))
    return CommandResult(lambda color: diff_text(found, color=color), diff_to_json(found))


def demo(options: argparse.Namespace) -> CommandResult:
    """Train a small GPT-2 inside a third of eager's memory."""
    from graphopt.cli.demo import run_demo

    data = run_demo(options.steps, options.html)
    return CommandResult(lambda _: "", data)


def _prepare(options: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The user's model, and keywords for the API; what can be refused is refused before torch is loaded."""
    if options.mem_budget is None and options.plan is None:
        raise UsageError("name a budget: --mem-budget 8GiB (or a saved plan: --plan PATH)")
    if options.mem_budget is not None:
        parse_bytes(options.mem_budget, device_total_bytes=2**40)
    from graphopt.cli.build_function import load_target
    from graphopt.problem.plan import Plan

    is_meta = getattr(options, "meta", False)
    keywords = {"mem_budget": options.mem_budget, "planner": options.planner, **_costs(options)}
    keywords |= {"plan_seconds": options.plan_seconds, "compiler": options.compiler, "numerics": options.numerics}
    keywords["offload"] = options.offload
    keywords["plan"] = Plan.load(options.plan) if options.plan else None
    sizes_change, device = getattr(options, "dynamic", None) is not None, "meta" if is_meta else options.device
    with phase("building the model"):
        target = load_target(options.target, device, options.dim, sizes_change=sizes_change)
    if target.optimizer is not None:
        keywords["optimizer"] = target.optimizer
    return target, keywords


def _costs(options: argparse.Namespace) -> dict[str, Any]:
    reserve = 0 if options.reserve == "0" else options.reserve
    return {"cost_model": options.cost_model, "reserve": reserve}


def _write(options: argparse.Namespace, report: Report) -> None:
    if options.save_plan:
        report.plan.save(options.save_plan)
    if options.html:
        from graphopt.report.html import render_html

        write_text(options.html, render_html(report))


def _write_graphs(options: argparse.Namespace, optimized: Optimized) -> None:
    """Write the files of `plan` alone."""
    if options.graph:
        from graphopt.formats.model_graph import planned_graphs

        write_graph(planned_graphs(optimized.planned_graphs), options.graph)
    if options.problem_out:
        _write_problem(optimized.planned_graphs, options.problem_out)
    if options.trace:
        optimized.timeline.save_trace(options.trace)
    if options.snapshot:
        optimized.timeline.save_snapshot(options.snapshot)


def _write_problem(planned: Sequence[PlannedGraph], path: str) -> None:
    """Write the problem of a model of one graph."""
    if len(planned) != 1:
        raise UsageError(f"--problem-out: the model is {len(planned)} graphs, and a problem is of one")
    write_text(path, json.dumps(problem_to_json(planned[0].captured.problem)))


def _minimum_bytes(run: Planner, study: Study) -> int:
    """The least budget that this planner has a schedule for: what it answers to a budget of nothing."""
    try:
        return simulate(study.problem, run(study, 0)).peak_bytes
    except InfeasibleError as error:
        return error.minimum_bytes


def _solved(problem: Problem, data: dict[str, Any]) -> str:
    again = len(data["schedule"]) - len(problem.ops)
    above = data["seconds"] / data["lower_bound_seconds"] - 1 if data["lower_bound_seconds"] else 0.0
    proof = " (proven optimal)" if data["proven_optimal"] else f" (at most {above:.2%} above the optimum)"
    return (
        f"{data['planner']}: {format_bytes(data['peak_bytes'])} at the peak, "
        f"{data['overhead']:+.2%} time{proof}, {again} of {len(problem.ops)} ops run again; "
        f"the smallest budget is {format_bytes(data['minimum_bytes'])}"
    )

"""The command line: what can be asked, how errors are shown, and with which exit code."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from graphopt import __version__
from graphopt.base.errors import GraphoptError, UsageError

_EPILOG = """\
bytes: 8GiB is 2**30-based, 8GB is 10**9, 80% is of the device's memory, a bare number is bytes
exit codes: 0 ok (help too), 1 unexpected, 2 usage, 3 does not fit, 4 verification failed, 5 capture failed,
6 plan does not match"""

#: Those of `planners.PLANNERS` beside auto: to import them takes longer than all of `--help`.
PLANNER_NAMES = ("chain", "exact", "mincut", "none", "reorder", "search", "sqrt_n")


class _Parser(argparse.ArgumentParser):
    """Raises instead of exiting, so that all errors are shown in one way."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}\n{self.format_usage().strip()}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    as_json, debug = "--json" in words, "--traceback" in words or bool(os.environ.get("GRAPHOPT_DEBUG"))
    try:
        options = make_parser().parse_args(words)
        # What a user's own file prints must not end up in the middle of the JSON.
        with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
            text, code = _run(options)
        _print(text)
        return code
    except SystemExit as stop:  # --help and --version
        return stop.code if isinstance(stop.code, int) else 0
    except GraphoptError as error:
        return _fail(error, error.exit_code, as_json, debug)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        return _fail(error, 1, as_json, debug)


def make_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = _Parser(
        prog="graphopt",
        description="Name a number of bytes, and a PyTorch model trains inside it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"graphopt {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in (("plan", "plan a model and report it"), ("verify", "plan it, and run it against eager")):
        command = _command(commands, name, summary)
        _target(command)
        command.add_argument("--mem-budget", metavar="BYTES", help="for example 8GiB; needed unless --plan names one")
        _planner(command)
        command.add_argument(
            "--compiler", choices=("eager", "inductor"), default="eager",
            help="whose kernels run the plan: eager's own, bit by bit (default), or Inductor's",
        )  # fmt: skip
        _numerics(command)
        _offload(command)
        command.add_argument("--plan", metavar="PATH", help="use this saved plan instead of planning")
        command.add_argument("--save-plan", metavar="PATH", help="write the plan as JSON")
        command.add_argument("--html", metavar="PATH", help="write the report as one self-contained page")
        if name == "plan":
            _graph(command)
            _problem_out(command)
            _traces(command)
            command.add_argument(
                "--dynamic", metavar="NAME=DIM,...", help="print formulas in these sizes of inputs: batch=0,length=1"
            )
            _meta(command)
    _sweep(commands)
    fit = _command(commands, "fit", "the ways to cut a batch that fit, and the largest batch that needs no cutting")
    _target(fit)
    fit.add_argument("--mem-budget", metavar="BYTES", required=True, help="for example 8GiB")
    _planner(fit)
    _numerics(fit)
    _offload(fit)
    _meta(fit)
    fit.add_argument(
        "--optimizer",
        choices=("adamw", "adam", "sgd", "none"),
        help="whose state counts (sgd: with momentum); default: the one that FUNCTION returns fourth, or adamw",
    )
    _export(_command(commands, "export", "write a model's forward as an ONNX file, the plan on its nodes"))
    solve = _command(commands, "solve", "run a planner on a bare problem (no torch)")
    solve.add_argument("problem", help="a graphopt.problem/1 JSON file")
    solve.add_argument("--mem-budget", metavar="BYTES", required=True, help="for example 100MiB")
    _planner(solve)
    _graph(solve)
    _command(commands, "doctor", "say what is on this machine, and what is wrong with it")
    diff = _command(commands, "diff", "what changed from one plan or report to another (no torch)")
    for name in ("before", "after"):
        diff.add_argument(name, help="a plan, as --save-plan writes it, or a report, as --json prints it")
    demo = _command(commands, "demo", "train a small GPT-2 inside a third of eager's memory")
    demo.add_argument("--steps", type=int, default=24, help="training steps (default 24)")
    demo.add_argument("--html", metavar="PATH", help="write the report as one self-contained page")
    return parser


def _sweep(commands: Any) -> None:
    sweep = _command(commands, "sweep", "the whole memory/time curve of a model")
    _target(sweep)
    sweep.add_argument("--html", metavar="PATH", help="write the curve as one self-contained page")
    sweep.add_argument(
        "--over", metavar="NAME=FROM:TO,...",
        help="sizes of inputs, not budgets: batch=1:64,length=128:4096 (dimensions 0 and 1), or NAME@DIM=FROM:TO",
    )  # fmt: skip
    sweep.add_argument("--mem-budget", metavar="BYTES", help="with --over: what fits in it, and at what price")
    _meta(sweep)


def _command(commands: Any, name: str, summary: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=summary.capitalize() + ".", epilog=_EPILOG, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    command.add_argument("--traceback", action="store_true", help="show where an error comes from")
    command.add_argument("--json", action="store_true", help="print JSON on standard output, errors too")
    return command


def _export(command: argparse.ArgumentParser) -> None:
    _target(command)
    command.add_argument("--onnx", metavar="PATH", required=True, help="the file to write, for example model.onnx")
    command.add_argument("--mem-budget", metavar="BYTES", help="plan for it first; without, the nodes have no notes")
    _planner(command)
    _offload(command)


def _numerics(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--numerics", choices=("bitwise", "reordered"), default="bitwise",
        help="eager's bits (default), or sums in another order: the largest values are then made in pieces",
    )  # fmt: skip


def _offload(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--offload", metavar="WHERE",
        help="values may be moved there and fetched back: host (on a GPU), file, or a folder on a fast disk",
    )  # fmt: skip


def _target(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "target",
        metavar="FILE.py:FUNCTION",
        help="a function that returns (model, example_inputs), with loss_fn and optimizer behind them if there are; or "
        "an ONNX file, model.onnx",
    )
    command.add_argument(
        "--dim",
        metavar="NAME=SIZE,...",
        action="append",
        help="of an ONNX file: sizes that have only a name, as N=8; others by their place, as x@0=8",
    )
    command.add_argument("--cost-model", default="auto", help="profiled, roofline or auto (default)")
    command.add_argument("--reserve", metavar="BYTES", default="0", help="bytes that you hold besides (default 0)")
    command.add_argument("--device", help="move the model and its inputs there first, for example cuda")


def _problem_out(command: argparse.ArgumentParser) -> None:
    command.add_argument("--problem-out", metavar="PATH", help="write what is planned as a problem for solve")


def _traces(command: argparse.ArgumentParser) -> None:
    command.add_argument("--trace", metavar="PATH", help="write the step as a trace for ui.perfetto.dev")
    command.add_argument("--snapshot", metavar="PATH", help="write the step as a pickle for pytorch.org/memory_viz")


def _meta(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--meta", action="store_true",
        help="build the model without memory for its weights and run nothing; in place of FILE.py:FUNCTION the "
        "config.json of a causal language model of transformers will do",
    )  # fmt: skip


def _planner(command: argparse.ArgumentParser) -> None:
    command.add_argument("--planner", default="auto", help=f"{', '.join(PLANNER_NAMES)} or auto (default)")
    command.add_argument(
        "--plan-seconds", metavar="SECONDS", type=_seconds, default=0.0,
        help="look so long for a faster plan than the planner's (default 0)",
    )  # fmt: skip


def _graph(command: argparse.ArgumentParser) -> None:
    command.add_argument("--graph", metavar="PATH", help="write ops and values as a graph: PATH.graphml or PATH.dot")


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of seconds, 0 or more, got {text!r}")
    return seconds


def _run(options: argparse.Namespace) -> tuple[str, int]:
    from graphopt.base.progress import progress, watched_phases
    from graphopt.cli import commands

    run, doing = {
        "plan": (commands.plan, "capturing, pricing and planning"),
        "verify": (commands.verify, "planning, and running it against eager"),
        "sweep": (commands.sweep, "capturing, and planning for every budget"),
        "fit": (commands.fit, "capturing, and planning micro-batches"),
        "export": (commands.export, "capturing, planning and exporting"),
        "solve": (commands.solve, "planning"),
        "doctor": (commands.doctor, "looking"),
        "diff": (commands.diff, ""),
        "demo": (commands.demo, ""),
    }[options.command]
    # The demo prints as it goes, and a comparison takes no time.
    if not doing:
        answer = run(options)
    else:
        with progress(doing) as options.tell, watched_phases(options.tell) as options.phases:
            answer = run(options)
    if options.json:
        return json.dumps(answer.data, indent=1), answer.exit_code
    return answer.text(_wants_color()), answer.exit_code


def _wants_color() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def _print(text: str) -> None:
    if not text:
        return
    with contextlib.suppress(AttributeError):  # a terminal that cannot show a character shows "?"
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        print(text, flush=True)
    except BrokenPipeError:  # `graphopt ... | head`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123


def _fail(error: Exception, code: int, as_json: bool, debug: bool) -> int:
    """Show an error: a few lines on standard error, and as JSON on standard output where asked for."""
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    known = isinstance(error, GraphoptError)
    message = str(error) if known else f"unexpected {type(error).__name__}: {error}"
    print(f"graphopt: {message}", file=sys.stderr)
    if not known and not debug:
        print("graphopt: this is a fault of graphopt; --traceback shows where it comes from", file=sys.stderr)
    if as_json:
        details = {"type": type(error).__name__, "message": str(error), "exit_code": code}
        for name in ("minimum_bytes", "budget_bytes", "drivers", "tensor", "largest_difference"):
            if hasattr(error, name):
                details[name] = getattr(error, name)
        print(json.dumps({"error": details}, indent=1, default=str))
    return code

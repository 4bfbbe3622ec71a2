"""The reference of the command line, from its own parser."""

from __future__ import annotations

import argparse

from docs.site.generated.markdown import code, table
from graphopt.cli.cli import make_parser


def commands() -> str:
    """Every command: how it is called, and its options."""
    parser = make_parser()
    (choices,) = (each for each in parser._actions if isinstance(each, argparse._SubParsersAction))
    helps = {each.dest: each.help for each in choices._choices_actions}
    summary = table(("command", ""), [(f"[{code(name)}](#{name})", helps[name]) for name in choices.choices])
    return "\n\n".join([summary, *(command(name, each) for name, each in choices.choices.items())])


def command(name: str, parser: argparse.ArgumentParser) -> str:
    """One command: its line of usage and its options."""
    usage = parser.format_usage().removeprefix("usage: ")
    rows = [row(each) for each in parser._actions if each.dest != "help"]
    return "\n\n".join(
        [f"## {name}", parser.description or "", f"```text\n{usage}```", table(("argument", "", "meaning"), rows)]
    )


def row(action: argparse.Action) -> tuple[str, str, str]:
    """An option's spelling, whether it is needed, and its help."""
    value = action.metavar or (f"{{{','.join(action.choices)}}}" if action.choices else action.dest.upper())
    named = bool(action.option_strings)
    spelled = ", ".join(action.option_strings) + (f" {value}" if action.nargs != 0 else "") if named else str(value)
    is_needed = action.required if named else True
    return code(spelled), "needed" if is_needed else "", action.help or ""

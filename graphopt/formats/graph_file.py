"""A networkx graph as a file that other programs read: GraphML, or DOT for Graphviz. No torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.base.errors import UsageError
from graphopt.base.records import write_text
from graphopt.base.units import format_bytes

if TYPE_CHECKING:
    import networkx as nx

#: Characters that XML 1.0 cannot hold, or that its readers change.
_NOT_IN_XML = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def check_graph_path(path: str) -> None:
    """Raise UsageError where the path's ending names no format that `write_graph` knows."""
    if Path(path).suffix.lower() not in _WRITERS:
        raise UsageError(f"cannot tell the format of {path!r}: a graph is written as {' or '.join(_WRITERS)}")


def write_graph(graph: nx.DiGraph, path: str) -> None:
    """Write a graph as its path's ending says: .graphml or .dot. Raises UsageError where it cannot be written.

    Control characters, and halves of surrogate pairs, stand in the file as their escapes: no XML can hold them.
    """
    check_graph_path(path)
    write_text(path, _WRITERS[Path(path).suffix.lower()](graph))


def to_graphml(graph: nx.DiGraph) -> str:
    """The graph in GraphML, as networkx writes it."""
    from networkx import generate_graphml

    clean = graph.__class__()
    clean.add_nodes_from(
        (key, {name: _clean(value) for name, value in data.items()}) for key, data in graph.nodes.items()
    )
    clean.add_edges_from(graph.edges)
    return "\n".join(('<?xml version="1.0" encoding="utf-8"?>', *generate_graphml(clean), ""))


def to_dot(graph: nx.DiGraph) -> str:
    """The graph in DOT: ops as boxes, values as ellipses; what runs again is dashed, what is kept is filled.

    Labels hold the names; all other attributes are there besides, as text.
    """
    lines = ["digraph graphopt {"]
    for key, data in graph.nodes.items():
        # pydot fails on a node that has an attribute "name"
        shown = {**{name: value for name, value in data.items() if name != "name"}, **_looks(data)}
        lines.append(f"  {_quoted(key)} [{', '.join(f'{name}={_quoted(value)}' for name, value in shown.items())}];")
    lines += [f"  {_quoted(start)} -> {_quoted(end)};" for start, end in graph.edges]
    return "\n".join((*lines, "}", ""))


def _looks(data: Mapping[str, Any]) -> dict[str, str]:
    """How Graphviz draws a node."""
    if data["kind"] == "op":
        looks = {"label": str(data["name"]), "shape": "box"}
    else:
        looks = {"label": f"{data['name']}\n{format_bytes(data['bytes'])}", "shape": "ellipse"}
    styles = [style for style, holds in (("dashed", "recomputed"), ("filled", "kept")) if data.get(holds)]
    return {**looks, "style": ",".join(styles)} if styles else looks


def _clean(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return _NOT_IN_XML.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), value)


def _quoted(value: object) -> str:
    """A quoted string of DOT. A backslash is doubled, as in labels one alone begins an escape."""
    text = str(_clean(value)).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{text}"'


_WRITERS: dict[str, Callable[[nx.DiGraph], str]] = {".graphml": to_graphml, ".dot": to_dot}

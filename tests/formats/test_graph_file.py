"""GraphML and DOT: whatever stands in a name, readers of these formats get it back."""

from __future__ import annotations

import re
from pathlib import Path

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.base.errors import UsageError
from graphopt.formats.graph_file import to_dot, to_graphml, write_graph
from graphopt.formats.problem_graph import problem_graph
from graphopt.problem.problem import Op, Problem, Value

EVIL = (
    'a "quoted" name', "two\nlines", "<b>&amp;</b>", "back\\slash\\", "\\", '\\"', "\\N \\G %s {x} ; -> [shape=box]",
    "ünïcødé 漢字 🙂", " blanks ", "", "digraph", "tab\there", "<<TABLE>>", "]]>", "<!-- -->", "# no comment // /* */",
)  # fmt: skip
UNWRITABLE = {"a\0b": "a\\x00b", "\x1b[31m": "\\x1b[31m", "\ud800": "\\ud800", "a\r": "a\\r", "\ufffe": "\\ufffe"}


def named(*names: str) -> nx.DiGraph:
    """A chain of ops with these names, all of them run twice."""
    last = len(names)
    ops = tuple(Op(name, 0.5, 7, (i,), (i + 1,), i > last // 2, True) for i, name in enumerate(names))
    return problem_graph(Problem((Value(2**40),) * (last + 1), ops, (last,)), (*range(last), *range(last)))


def same(read: nx.DiGraph, graph: nx.DiGraph) -> bool:
    """Nodes, edges and all that is said of them, types included."""
    kinds = [{key: type(value) for key, value in data.items()} for g in (read, graph) for data in g.nodes.values()]
    half = len(kinds) // 2
    return read.adj == graph.adj and dict(read.nodes) == dict(graph.nodes) and kinds[:half] == kinds[half:]


def from_dot(text: str, folder: Path) -> nx.DiGraph:
    """A graph in DOT as pydot reads it; what is quoted is unquoted as Graphviz does for labels."""
    (folder / "graph.dot").write_text(text, encoding="utf-8")
    read = nx.nx_pydot.read_dot(folder / "graph.dot")
    graph = nx.DiGraph()
    graph.add_nodes_from((unquoted(n), {k: unquoted(v) for k, v in data.items()}) for n, data in read.nodes.items())
    graph.add_edges_from((unquoted(a), unquoted(b)) for a, b in read.edges())
    return graph


def unquoted(text: str) -> str:
    if re.fullmatch(r"\w+", text):  # pydot's own doing
        return text
    assert re.fullmatch(r'"([^"\\]|\\.)*"', text, re.DOTALL), text
    return re.sub(r"\\(.)", lambda found: {"n": "\n"}.get(found[1], found[1]), text[1:-1])


def test_graphml_is_read_back_as_it_was() -> None:
    graph = named(*EVIL)
    assert same(nx.parse_graphml(to_graphml(graph)), graph)


def test_dot_is_read_back_as_it_was(tmp_path: Path) -> None:
    graph = named(*EVIL)
    read = from_dot(to_dot(graph), tmp_path)
    assert set(read.edges) == set(graph.edges) and set(read) == set(graph)
    for name, data in graph.nodes.items():
        texts = {key: str(value) for key, value in data.items() if key != "name"}
        assert {key: read.nodes[name][key] for key in texts} == texts
        assert read.nodes[name]["shape"] == ("box" if data["kind"] == "op" else "ellipse")
    assert [read.nodes[f"op{i}"]["label"] for i in range(len(EVIL))] == list(EVIL)
    assert read.nodes["op0"]["style"] == "dashed" and "1.0 TiB" in read.nodes["value0"]["label"]


@given(st.lists(st.text(), min_size=1, max_size=4))
def test_any_name_makes_a_file_that_can_be_read(names: list[str]) -> None:
    graph = named(*names)
    read = nx.parse_graphml(to_graphml(graph))
    assert set(read.edges) == set(graph.edges)
    for i, name in enumerate(names):
        assert read.nodes[f"op{i}"]["name"] == name or re.search(r"[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-]", name)


@pytest.mark.parametrize("name", UNWRITABLE)
def test_what_no_file_can_hold_stands_there_as_its_escape(name: str, tmp_path: Path) -> None:
    assert nx.parse_graphml(to_graphml(named(name))).nodes["op0"]["name"] == UNWRITABLE[name]
    assert from_dot(to_dot(named(name)), tmp_path).nodes["op0"]["label"] == UNWRITABLE[name]


def test_the_ending_says_the_format(tmp_path: Path) -> None:
    graph = named("a")
    write_graph(graph, str(tmp_path / "a.GraphML"))
    write_graph(graph, str(tmp_path / "a.dot"))
    assert same(nx.read_graphml(tmp_path / "a.GraphML"), graph)
    assert (tmp_path / "a.dot").read_text(encoding="utf-8") == to_dot(graph)
    for name in ("a.png", "a", "a.dot.txt"):
        with pytest.raises(UsageError, match=r"written as \.graphml or \.dot"):
            write_graph(graph, str(tmp_path / name))
    with pytest.raises(UsageError, match="cannot write"):
        write_graph(graph, str(tmp_path / "no" / "a.dot"))

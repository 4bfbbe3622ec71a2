"""A list of named passes is run over a graph, one after the other; where one fails, the error says which."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from torch import fx

from graphopt.base.errors import GraphoptError, PassError

logger = logging.getLogger(__name__)


class HasGraph(Protocol):
    """What passes edit: a window's GraphModule, or a JointGraph."""

    @property
    def graph(self) -> fx.Graph:
        """The fx graph that passes edit."""
        ...


G = TypeVar("G", bound=HasGraph)

#: Something that holds of a graph or not: its function's name says what.
Fact = Callable[[G], bool]
#: Something that no pass may break. It is called with the graph before a pass, and what it gives back after the pass,
#: with whether the pass says that it changed the graph; that says what is broken, or "".
Rule = Callable[[G], Callable[[bool], str]]


@dataclass(frozen=True)
class NamedPass(Generic[G]):
    """A named edit of a graph; `run` says whether it changed anything.

    What it `requires` must hold before it, and what it `ensures` holds after it: that is how an order
    of passes is found to be wrong before anything is computed with it.
    """

    name: str
    run: Callable[[G], bool]
    requires: tuple[Fact[G], ...] = ()
    ensures: tuple[Fact[G], ...] = ()


def run_passes(graph: G, passes: Sequence[NamedPass[G]], rules: Sequence[Rule[G]] = ()) -> bool:
    """Run passes in order; True where one of them changed the graph.

    A GraphoptError is for the user: it goes on as it is, with a note that names the pass. Any other
    exception, and a fact or a rule that does not hold, is a fault of graphopt's own and becomes a
    PassError. Rules take as long as the passes themselves: they are for tests.
    """
    done: list[str] = []
    any_changed = False
    for each in passes:
        try:
            changed = _run_one(graph, each, rules)
        except GraphoptError as error:
            _add_note(error, f"raised by {_place(each, done)}")
            raise
        except Exception as error:
            raise PassError(f"{_place(each, done)} failed: {type(error).__name__}: {error}") from error
        done.append(f"{each.name} (changed the graph)" if changed else each.name)
        any_changed = any_changed or changed
    logger.debug("passes: %s", ", ".join(done))
    return any_changed


def _run_one(graph: G, each: NamedPass[G], rules: Sequence[Rule[G]]) -> bool:
    _demand(graph, each.requires, "requires")
    kept = [rule(graph) for rule in rules]
    changed = each.run(graph)
    _demand(graph, each.ensures, "ensures")
    broken = [what for what in (still(changed) for still in kept) if what]
    assert not broken, "; ".join(broken)
    return changed


def _demand(graph: G, facts: Sequence[Fact[G]], verb: str) -> None:
    for fact in facts:
        assert fact(graph), f"it {verb} that {fact.__name__.replace('_', ' ')}, and that is not so"


def _place(each: NamedPass[G], done: Sequence[str]) -> str:
    return f"pass {each.name!r}, after {', '.join(done) or 'no other'},"


def _add_note(error: BaseException, note: str) -> None:
    """`error.add_note`, which is new in Python 3.11 (PEP 678)."""
    if not hasattr(error, "__notes__"):
        error.__notes__ = []  # type: ignore[attr-defined]
    error.__notes__.append(note)  # type: ignore[attr-defined]

"""The tangents that a graph's backward is planned for: a guess, then what backwards have shown."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from graphopt.capture.tangents import all_tangents, loss_alone
from graphopt.graph.fingerprint import tangents_of_hash
from graphopt.graph.step_graph import StepGraph

#: How often other tangents may come; then the graph is planned for all of them.
MOST_SETS = 4


@dataclass(eq=False)
class Tangents:
    """Chooses the tangents of one graph, each time that it is captured.

    The graphs of kept plans (`kept_hashes`) have those that the plans were made for. All others start with a guess
    where they are a whole model, with all tangents elsewhere, and go on with every tangent that came so far.
    """

    kept_hashes: Collection[str] | None
    is_whole_model: bool
    #: What came so far, and how often there was more than before.
    met: frozenset[int] = frozenset()
    sets: int = 0
    #: What stays planned, as there was no plan for what came.
    stays: frozenset[int] | None = None
    _guess: frozenset[int] = frozenset()
    _all: frozenset[int] = frozenset()

    def __call__(self, step: StepGraph) -> frozenset[int]:
        """The positions of the tangents that the graph is to be planned for."""
        self._all = all_tangents(step.joint)
        if self.kept_hashes is not None:
            found = (tangents_of_hash(step.graph_hash, kept) for kept in self.kept_hashes)
            return next((defined for defined in found if defined), self._all)
        self._guess = loss_alone(step.joint) if self.is_whole_model else self._all
        return self.chosen

    def came(self, defined: frozenset[int]) -> bool:
        """A backward had these tangents; True where some of them never came before."""
        if defined <= self.met:
            return False
        self.met |= defined
        self.sets += 1
        return True

    def differ_from(self, planned: frozenset[int]) -> bool:
        """Whether what is planned for these tangents is to be planned anew, as others came, or not all of them did."""
        return bool(self.met) and self.kept_hashes is None and self.chosen != planned

    @property
    def are_chosen(self) -> bool:
        """Whether there was a choice: a graph with one output has none."""
        return bool(self._all)

    @property
    def chosen(self) -> frozenset[int]:
        """What is to be planned by what is known now. A guess stays as long as it holds."""
        if self.stays is not None:
            return self.stays
        if self.met <= self._guess and (not self.met or self._guess != self._all):
            return self._guess
        return self.met if self.sets <= MOST_SETS else self._all

"""What the inner loops are, and which kind a problem gets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from graphopt.planners.native.anneal_round import AnnealRound
from graphopt.planners.native.arrays import Floats, Ints
from graphopt.planners.native.build import library
from graphopt.planners.native.compiled import CompiledLoops
from graphopt.planners.native.linear_programme import LinearProgramme
from graphopt.planners.native.plain import PlainLoops
from graphopt.problem.problem import Problem


class Loops(Protocol):
    """The loops in which planning spends its time, on schedules given as arrays of op ids."""

    @property
    def slowness(self) -> int:
        """About how many times as long as the machine code they take."""
        ...

    def profile(self, schedule: Ints) -> tuple[Ints, int, float]:
        """Bytes alive at each step, their peak, and the seconds: what the simulator says."""
        ...

    def lower(self, schedule: Ints, target_bytes: int, moves: int, longest: int) -> Ints | None:
        """The schedule with up to `moves` more evictions at its steps over a target; None where none would help.

        An eviction frees a value between two reads and runs at most `longest` ops again for the second.
        """
        ...

    def fill(self, schedule: Ints, batches: int, known_peaks: Ints, known_seconds: Floats) -> tuple[Ints, Floats, Ints]:
        """Peaks in bytes, and seconds, as recomputations go one by one; for each step the move with which it goes.

        In `batches` batches at the least. It ends early where it is far above a known curve.
        """
        ...

    def fill_under(self, schedule: Ints, level_bytes: int) -> Ints:
        """The schedule without those recomputations that can go while its peak stays at `level_bytes` or below."""
        ...

    def reorder(self, order: Ints, movable: Ints, passes: int) -> Ints:
        """An order in which less is alive: each of the `movable` ops moved to where that helps most, `passes` times.

        Dependencies, the order of pinned ops and of those that are not recomputable, and the two halves are kept.
        """
        ...

    def walk(self, limit_bytes: int, /) -> Ints | None:
        """A schedule that tries to stay under a limit, evicting as it walks the ops; None where it loses its way."""
        ...

    def anneal(self, schedule: Ints, what: AnnealRound, /) -> tuple[Ints, float] | None:
        """The best schedule that a round finds and its seconds; None where none is faster."""
        ...

    def prices(self, programme: LinearProgramme, steps: int, /) -> Floats | None:
        """A price of 0 or more for each row, by so many steps towards those that prove most; None where there are none.

        Costs should be about 1.
        """
        ...

    def min_cut(self, out_at: Ints, out: Ints, to: Ints, room: Ints) -> Sequence[bool]:
        """Whether each node is on the source's side of the minimum cut nearest to the source.

        Node 0 is the source, node 1 the sink; the edges out of node `i` are `out[out_at[i]:out_at[i + 1]]`, and
        `to[e]` is the head of edge `e`, whose reverse is `e ^ 1`. `room`, what can still flow along each edge,
        becomes what the maximum flow leaves of it.
        """
        ...


def loops_for(problem: Problem, held: frozenset[int], compiled: bool) -> Loops:
    """The compiled loops where they are wanted and there is a compiler, else the plain ones."""
    found = library() if compiled else None
    return PlainLoops(problem, held) if found is None else CompiledLoops(found, problem, held)

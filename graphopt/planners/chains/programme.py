"""The optimal chain of regions: which keep what, which are computed again, nested.

Beaumont, Eyraud-Dubois, Herrmann, Joly, Shilova: Optimal checkpointing for heterogeneous chains
(2019), section 4, theorem 1, where a stage keeps all or nothing; with several options a stage, Zhao
et al., Rockmate (ICML 2023), section 3. A value that crosses several borders (U-Net, DenseNet) counts
from the first one that holds it on, once.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from graphopt.planners.chains.region_options import RegionOption
from graphopt.planners.chains.regions import Regions
from graphopt.planners.native.arrays import Floats, Ints
from graphopt.problem.problem import Problem

#: Steps in which the dynamic programme counts memory.
SLOTS = 300

Number = TypeVar("Number", Floats, Ints)


class Chain:
    """`seconds[i, j, PAD + m]`: least time to run regions i..j and their backward with m slots to spare.

    What enters region i is held by the caller. Entries before `PAD` are infinite: less than nothing
    to spare. The slots are of such a size that there is room for all borders and the widest region, and
    for a share of `room` of all that the options can keep.
    """

    PAD = SLOTS + 1

    def __init__(self, problem: Problem, regions: Regions, options: list[list[RegionOption]], room: float) -> None:
        self.regions, self.options = regions, options
        self.count = count = len(regions.parts)
        own = [sum(problem.ops[i].seconds for i in part.ops[: part.turn]) for part in regions.parts]
        #: Time of the forward before each region.
        self.passed = np.array([0.0, *accumulate(own)])
        self.extra = [own[i] + np.array([o.seconds for o in options[i]]) for i in range(count)]
        more = _beside(problem, regions)
        backward = [[o.backward_bytes + base for o in options[i]] for i, base in enumerate(regions.backward_base)]
        widest = max(max(each) for each in backward)
        kept = sum(max(o.kept_bytes for o in each) for each in options)
        self.slot_bytes = max(1.0, (room * kept + widest + sum(more[i, i + 1] for i in range(count - 1))) / SLOTS)
        #: Slots that holding what enters region k takes, beside what enters region i.
        self.more = self._slots(more)
        self.kept = [self._slots([o.kept_bytes for o in each]) for each in options]
        self.forward = [self._slots([o.forward_bytes for o in each]) for each in options]
        self.backward = [self._slots(each) for each in backward]
        #: Slots for a pass over a region that keeps nothing, and those taken as a region's backward begins.
        self.passing = self._slots([min(o.forward_bytes for o in each) for each in options])
        self.entry = self._slots(regions.entry_base)
        self.seconds = np.full((count, count, self.PAD + SLOTS + 1), np.inf)
        self._solve()

    def _slots(self, size: npt.ArrayLike) -> Ints:
        slots: Ints = np.rint(np.asarray(size, dtype=np.float64) / self.slot_bytes).astype(np.int64)
        return slots

    def _solve(self) -> None:
        """The dynamic programme, from short ranges of regions to long ones; all ranges of one width at once."""
        slots, most = np.arange(SLOTS + 1), max(map(len, self.extra))
        self.ahead = np.lib.stride_tricks.sliding_window_view(self.seconds, SLOTS + 1, axis=2)
        extra, kept = _padded(self.extra, most, np.inf), _padded(self.kept, most, 0)
        forward, backward = _padded(self.forward, most, 0), _padded(self.backward, most, 0)
        passing = np.zeros(self.count, dtype=np.int64)
        for width in range(self.count):
            first = np.arange(self.count - width)
            last = first + width
            entry = self.entry[last]
            need = np.maximum(forward[first] + entry[:, None], backward[first])
            best = np.where(slots >= need[:, :, None], extra[first][:, :, None], np.inf)
            if width:
                spent = np.minimum(kept[first] + self.more[first, first + 1][:, None], self.PAD)
                best += self.ahead[(first + 1)[:, None], last[:, None], self.PAD - spent]
            least = best.min(axis=1)
            if width:
                passing = np.maximum(passing[:-1], self.passing[last - 1])
                split = self._splits(first, last)
                split[slots < (passing + entry)[:, None]] = np.inf
                np.minimum(least, split, out=least)
            self.seconds[first, last, self.PAD :] = least

    def _splits(self, first: Ints, last: Ints) -> Floats:
        """For each of some ranges of one width, the least seconds where its first region is come back to, by slots."""
        after = first[:, None] + np.arange(1, last[0] - first[0] + 1)
        spent = np.minimum(self.more[first[:, None], after], self.PAD)
        split: Floats = self.ahead[after, last[:, None], self.PAD - spent]
        split += self.seconds[first[:, None], after - 1, self.PAD :]
        split += (self.passed[after] - self.passed[first][:, None])[:, :, None]
        least: Floats = split.min(axis=1)
        return least

    def choice(self, i: int, j: int, slots: int) -> tuple[int, int]:
        """The option of region i and i + 1; or -1 and the first region after which to come back."""
        need = np.maximum(self.forward[i] + self.entry[j], self.backward[i])
        keep = np.where(slots >= need, self.extra[i], np.inf)
        if i == j:
            return int(keep.argmin()), i + 1
        spent = np.minimum(self.kept[i] + self.more[i, i + 1], self.PAD)
        keep += self.seconds[i + 1, j, self.PAD - spent + slots]
        option = int(keep.argmin())
        if slots >= self.passing[i:j].max() + self.entry[j]:
            after = np.arange(i + 1, j + 1)
            spent = np.minimum(self.more[i, after], self.PAD)
            split = self.seconds[after, j, self.PAD - spent + slots]
            split += self.seconds[i, after - 1, self.PAD + slots]
            split += self.passed[after] - self.passed[i]
            at = int(split.argmin())
            if split[at] < keep[option]:
                return -1, i + 1 + at
        return option, i + 1


def _beside(problem: Problem, regions: Regions) -> Ints:
    """Bytes of what enters region k and does not enter region i < k; 0 elsewhere."""
    entering = sorted(frozenset().union(*regions.border))
    place = {value: at for at, value in enumerate(entering)}
    # Whole numbers: for others numpy wakes threads, which take longer than the product.
    enters = np.zeros((len(regions.border), len(entering)), dtype=np.int64)
    for number, border in enumerate(regions.border):
        enters[number, [place[value] for value in border]] = 1
    both = enters * np.array([problem.values[value].bytes for value in entering], dtype=np.int64) @ enters.T
    beside: Ints = np.triu(both.diagonal()[None, :] - both, 1)
    return beside


def _padded(rows: list[Number], most: int, filler: float) -> Number:
    """The rows below each other, each filled up to `most` numbers."""
    table = np.full((len(rows), most), filler, dtype=rows[0].dtype)
    for row, numbers in zip(table, rows, strict=True):
        row[: len(numbers)] = numbers
    return table

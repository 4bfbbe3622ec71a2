"""What a step takes beside the blocks' own graphs, measured: while each block runs, and between them.

At each change (a graph begins or ends) the peak since the last change is read. What the plans say of the blocks is
taken off: what those that wait for their backward keep, and what the running one takes. What is left is what is there
besides, where it is there: shards, gathered parameters, messages, gradients, the root's own activations.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from graphopt.device.peak_window import CpuWindow, CudaWindow
from graphopt.plan.block_points import BlockPoint
from graphopt.plan.chain_shares import Beside


@dataclass(eq=False)
class StepMeter:
    """One step: blocks run forward in some order and backward in the reverse one; `first_bytes` is what the window
    does not know of."""

    window: CpuWindow | CudaWindow
    first_bytes: int
    peak_bytes: int = 0
    is_chain: bool = True
    ran: list[int] = field(default_factory=list)
    _is_paused: bool = False
    _points: list[BlockPoint] = field(default_factory=list)
    _kept: int = 0
    _forward: dict[int, int] = field(default_factory=dict)
    _backward: dict[int, int] = field(default_factory=dict)
    _between: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.window.take()

    @property
    def is_whole(self) -> bool:
        """Whether every block that ran has had its backward, in the reverse order."""
        return self.is_chain and self._kept == 0 and len(self._backward) == len(self.ran)

    @property
    def is_before_backward(self) -> bool:
        """Whether no block has had its backward."""
        return not self._backward

    def between(self) -> None:
        """What was until now was no graph of a block."""
        self._note(self._between, self._kept, 0)

    def pauses(self) -> None:
        """The backward has ended, or an update: what comes now is no part of the step."""
        self.between()
        self._is_paused = True

    def resumes(self) -> None:
        """An update begins."""
        self.between()
        self._is_paused = False

    def forward_ends(self, block: int, point: BlockPoint) -> None:
        """The forward graph of a block has run."""
        if block in self.ran:
            self.is_chain = False
            return
        self.ran.append(block)
        self._points.append(point)
        self._note(self._forward, self._kept, point.forward_bytes)
        self.is_chain = self.is_chain and self._kept == len(self.ran) - 1
        self._kept += 1

    def backward_ends(self, block: int) -> None:
        """The backward graph of a block has run."""
        if not self._kept or self.ran[self._kept - 1] != block:
            self.is_chain = False
            return
        self._kept -= 1
        self._note(self._backward, self._kept, self._points[self._kept].backward_bytes)

    def beside(self) -> Beside:
        """What was there besides, of a step that is whole."""
        count = len(self.ran)
        return Beside(
            tuple(self._forward[i] for i in range(count)),
            tuple(self._backward[i] for i in range(count)),
            tuple(self._between[i] for i in range(count + 1)),
        )

    def _note(self, where: dict[int, int], place: int, own_bytes: int) -> None:
        peak_bytes = self.window.take() + self.first_bytes
        if self._is_paused:
            return
        self.peak_bytes = max(self.peak_bytes, peak_bytes)
        kept_bytes = sum(point.kept_bytes for point in self._points[: self._kept])
        beside_bytes = max(peak_bytes - kept_bytes - own_bytes, 0)
        where[place] = max(where.get(place, beside_bytes), beside_bytes)

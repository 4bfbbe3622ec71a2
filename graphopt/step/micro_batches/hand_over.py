"""What becomes of a micro-batch's parameters and gradients: the passes over its joint graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from graphopt.graph.joint import JointGraph
from graphopt.kernels.choice import chosen
from graphopt.passes.joint import (
    Passes,
    return_gradients,
    shard_parameters,
    sum_gradients,
    update_parameters,
)
from graphopt.passes.window.clip import ClipValue
from graphopt.step.micro_batches.micro import HandOver
from graphopt.step.optimizer.backward_updates import BackwardUpdates
from graphopt.step.optimizer.optimizer_view import OptimizerView
from graphopt.step.options import StepOptions
from graphopt.step.ranks.exchange import Exchange
from graphopt.step.sharding.share_out import Shared


@dataclass(frozen=True)
class HandingOver:
    """Of one step: gradients update, are summed up, or are returned; on several ranks they are sent or scattered.

    They are scattered where rows of them are `shared` out.
    """

    view: OptimizerView
    options: StepOptions
    in_backward: BackwardUpdates
    exchange: Exchange | None
    shared: Shared | None

    def of(self, *, is_last: bool, summed: bool) -> tuple[object, HandOver]:
        """For the last micro-batch of a window or another one: what tells its passes from others', and the passes."""
        sends = is_last and not self.shared and self.exchange is not None and self.exchange.summing is not None
        exchange = self.exchange if sends else None
        # stock kernels promise eager's bits, so their products are made first; the plan has to know of them
        fuse = summed and chosen() != "stock"

        def hand_over(joint: JointGraph, given: Mapping[int, Any]) -> Passes:
            trained = {position: item for position, item in given.items() if self.view.trains(item)}
            passes = self._gradient_passes(trained, summed, fuse)
            if self.shared is not None:
                positions = [position for position, item in given.items() if self.shared.has(item)]
                compressed = self.exchange.by_rows(joint, trained) if self.exchange else None
                passes = (*shard_parameters(positions, self.shared.how, compressed), *passes)
            return (*passes, *exchange.passes(joint, trained)) if exchange else passes

        update = self.view.update_kind(in_backward=self.in_backward.are_on)
        return (exchange.kind if exchange else None, fuse, update), hand_over

    def _gradient_passes(self, trained: Mapping[int, Any], summed: bool, fuse: bool) -> Passes:
        if self.in_backward.are_on:
            groups = {name: group.of(name) for group in self.view.groups() for name in group.parameters}
            updates = {position: groups[self.view.names[id(item)]] for position, item in trained.items()}
            limit = self.options.clip.value if isinstance(self.options.clip, ClipValue) else None
            return update_parameters(updates, clip_value=limit)
        return sum_gradients(trained, fuse_products=fuse) if summed else return_gradients(trained)
